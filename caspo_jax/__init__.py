"""caspo_jax: confidence-aligned reasoning models in pure JAX (CASPO, CaT, faithful confidence)."""
