"""`evaluate --solutions`: how good is a verifier? F1 on solutions in ProcessBench's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments import common, verifiers

FLAGS = flags.FLAGS
COLUMNS = {
    "verifier": "verifier",
    "solutions": "solutions",
    "f1": "F1",
    "low": "low",
    "high": "high",
    "error_accuracy": "erroneous",
    "correct_accuracy": "correct",
    "unknown": "no verdict",
}


def define_flags() -> None:
    """--solutions, the verifier's flags and its noise."""
    verifiers.define_flags()
    flags.DEFINE_string(
        "solutions",
        None,
        "JSONL in ProcessBench's layout (id, problem, steps, label): F1 of --verifier, decode no answers",
    )
    flags.DEFINE_multi_float(
        "label_noise",
        [0.0],
        "share of the verifier's verdicts that are flipped, for --solutions (repeatable)",
        0.0,
        1.0,
    )


def report(path: str, out: Path) -> None:
    """Write and print verifier.{md,csv,json}: a row a level of noise."""
    from caspo_jax.evaluation.formats import markdown, write_table
    from caspo_jax.evaluation.verifier_f1 import judge_verifier, load_processbench
    from caspo_jax.steps import NoisyVerifier

    solutions = load_processbench(path)
    inner = _verifier()
    rows: list[dict[str, Any]] = []
    for noise in FLAGS.label_noise:
        judge = NoisyVerifier(inner, noise, FLAGS.seed) if noise else inner
        with common.Progress(1, judge.name, unit="step") as progress:
            found = judge_verifier(judge, solutions, progress=progress.reach)
        rows.append(
            {
                "verifier": judge.name,
                "solutions": len(solutions),
                "f1": found.score.f1,
                "low": found.interval.low,
                "high": found.interval.high,
                "error_accuracy": found.score.error_accuracy,
                "correct_accuracy": found.score.correct_accuracy,
                "unknown": found.unknown,
            }
        )
    write_table(out / "verifier", rows, COLUMNS, file=path)
    print(markdown(rows, COLUMNS))
    common.closing(f"verifier.md in {out}", {"solutions": len(solutions), "F1": f"{rows[0]['f1']:.3f}"})


def _verifier() -> Any:
    """The verifier of the flags; only those that ask the policy need --model."""
    from caspo_jax.errors import UserError
    from caspo_jax.training.stages import Policy

    if FLAGS.model is not None:
        policy = common.load_policy()
    elif FLAGS.verifier in ("exact", "gold", "rollouts"):
        raise UserError(f"--verifier={FLAGS.verifier} needs --model")
    else:
        policy = Policy(None, None, "", "", {})
    return verifiers.build(policy, *common.answer_functions(policy), common.step_delimiter(policy.settings))
