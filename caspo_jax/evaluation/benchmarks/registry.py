"""The benchmarks by name."""

from __future__ import annotations

import dataclasses

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark
from caspo_jax.evaluation.benchmarks.choices import CHOICE_BENCHMARKS
from caspo_jax.evaluation.benchmarks.code import CODE_BENCHMARKS
from caspo_jax.evaluation.benchmarks.livecodebench import LIVECODEBENCH
from caspo_jax.evaluation.benchmarks.logic import LOGIC_BENCHMARKS
from caspo_jax.evaluation.benchmarks.math_answers import MATH_BENCHMARKS
from caspo_jax.evaluation.benchmarks.table import TABLE_BENCHMARKS
from caspo_jax.evaluation.execution import Limits, open_sandbox

_REGISTRY: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *MATH_BENCHMARKS,
        *CODE_BENCHMARKS,
        LIVECODEBENCH,
        *CHOICE_BENCHMARKS,
        *TABLE_BENCHMARKS,
        *LOGIC_BENCHMARKS,
    )
}


def register(*benchmarks: Benchmark) -> None:
    """Add benchmarks of your own; a name of the same family and source may be given again.

    Raises:
      UserError: a name is taken by another benchmark.
    """
    for benchmark in benchmarks:
        known = _REGISTRY.setdefault(benchmark.name, benchmark)
        if (known.family, known.source) != (benchmark.family, benchmark.source):
            raise UserError(f"benchmark {benchmark.name!r} is there already ({known.family})")
        _REGISTRY[benchmark.name] = benchmark


def benchmark_names() -> tuple[str, ...]:
    """All names, in the order of registration."""
    return tuple(_REGISTRY)


def get_benchmark(
    name: str, *, allow_code_execution: bool = False, limits: Limits | None = None
) -> Benchmark:
    """The benchmark of that name.

    Args:
      name: one of `benchmark_names()`.
      allow_code_execution: the user's word that model-written code may run (`--allow_code_execution`). Without it a
        benchmark that needs it loads and asks, and refuses to score.
      limits: what such code may use.

    Raises:
      UserError: there is none of that name; or code may run, and this machine has no sandbox for it.
    """
    if name not in _REGISTRY:
        raise UserError(f"unknown benchmark {name!r}: one of {', '.join(_REGISTRY)}")
    benchmark = _REGISTRY[name]
    if benchmark.runs_code and allow_code_execution:
        sandbox = open_sandbox(allow_code_execution=True, limits=limits)
        return dataclasses.replace(benchmark, sandbox=sandbox)
    return benchmark
