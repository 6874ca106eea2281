"""caspo_jax's side of bench_train: a whole run from the same weights each time, reference pass included."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments import bench_model
from experiments.bench_worker import peak_bytes, reclaim, reset_peak, resident_bytes, serve, versions


class Side:
    """Answers `ready`, `run` and `matmul`."""

    def __init__(self, job: dict[str, Any]):
        self._job = job
        self._model = load(job)

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            import jax

            return {
                "versions": versions("jax", "flax", "optax"),
                "resident": resident_bytes(),
                "platform": jax.default_backend(),
            }
        if command["do"] == "matmul":
            return {"rate": matmul_rate(self._job["dtype"])}
        return self._run(command["workload"], command["settings"])

    def _run(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        import jax

        from caspo_jax.models.lora import LoraConfig
        from caspo_jax.training import TrainConfig, train

        workload = self._job["workloads"][name]
        pairs = bench_model.as_pairs(workload["pairs"])
        rank = self._job["lora_rank"]
        config = TrainConfig(
            batch_size=workload["batch_size"],
            learning_rate=1e-5,
            tensorboard=False,
            lora=LoraConfig(rank=rank) if rank else None,
            **settings,
        )
        reclaim()
        started = time.perf_counter()
        model, summary = train(self._model, pairs, config)
        jax.block_until_ready(model.embed[...])
        return {
            "seconds": time.perf_counter() - started,
            "first_loss": summary.history[0]["loss"],
            "last_loss": summary.last["loss"],
            "updates": summary.steps,
            "fill": summary.last["fill"],
            "peak": device_peak(),
        }


def load(job: dict[str, Any]) -> Any:
    """The job's model on the device; the peak of this process counts from here on."""
    import jax

    from caspo_jax.models import load_pretrained

    reset_peak()
    model, _ = load_pretrained(job["model"], dtype=job["dtype"])
    jax.block_until_ready(model.embed[...])
    return model


def device_peak() -> int:
    """Most bytes that the accelerator has held; on a CPU, that the process has."""
    import jax

    found = jax.local_devices()[0].memory_stats()
    return found["peak_bytes_in_use"] if found else peak_bytes()


def matmul_rate(dtype: str = "float32", repeats: int = 8) -> float:
    """Operations a second of a product of two squares, of 2,048 on a CPU and 8,192 elsewhere: the best of `repeats`."""
    import jax
    import jax.numpy as jnp

    from caspo_jax.models.precision import precision

    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=precision(dtype)))
    product(square, square).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
