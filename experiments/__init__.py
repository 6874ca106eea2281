"""Programs: one job each, run as `python -m experiments.NAME`; the package they drive is `caspo_jax`."""
