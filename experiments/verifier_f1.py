"""How far can the judge of steps be trusted? A verifier against solutions whose first wrong step is known (ProcessBench).

    python -m experiments.verifier_f1 --input=processbench.jsonl --verifier=equations
    python -m experiments.verifier_f1 --input=processbench.jsonl --verifier=judge --judge=CHECKPOINT --output=judge.json

Input, one JSON object a line: `id`, `problem`, `steps`, and `label`, the index of the first wrong step, -1 if none is.
F1 is the harmonic mean of two shares: of the solutions with an error, those whose first wrong step was found; of the solutions
without, those in which no error was found. `experiments.noise_sweep` shows what a judge of a given F1 costs in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags

from experiments import common, result_files, verifiers

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags(required=False)
    verifiers.define_flags()
    flags.DEFINE_string("input", None, "JSONL in ProcessBench's layout", required=True)
    flags.DEFINE_string(
        "output", None, "also write the figures, and what was found in each solution, to this JSON file"
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "rows decoded together, by verifiers that decode; default: by memory",
        lower_bound=1,
    )


def main() -> None:
    """Measure a verifier."""
    import dataclasses

    from caspo_jax.errors import UserError
    from caspo_jax.evaluation.formats import plain
    from caspo_jax.evaluation.verifier_f1 import judge_verifier, load_processbench
    from caspo_jax.steps import verifier_settings

    common.check_outputs(("output",), ("input", "labels", "judge_prompt"))
    solutions = load_processbench(FLAGS.input)
    if FLAGS.model is None and FLAGS.verifier == "exact":
        raise UserError("--verifier=exact needs --model, the tiny policy of an embedded task")
    # None does for verifiers that only read text.
    policy: Any = None if FLAGS.model is None else common.load_policy()
    if verifiers.needs_gold(policy):
        raise UserError(f"--verifier={FLAGS.verifier} reads gold answers, which ProcessBench's layout lacks")
    # How answers are read is for verifiers that need a gold answer; none of those is left.
    verifier = verifiers.build(policy, lambda text: None, common.same_text)
    settings = {"verifier": verifier.name, "verifier_settings": verifier_settings(verifier) or None}
    save = result_files.claim("output", "verifier_f1", settings, {"input": FLAGS.input})
    with common.Progress(sum(len(s.steps) for s in solutions), "judge", unit="step") as progress:
        found = judge_verifier(verifier, solutions, progress=progress.reach)
    score = found.score
    rows = [
        {"id": s.id, "label": label, "found": step}
        for s, label, step in zip(solutions, found.labels, found.found)
    ]
    facts = {"verifier": verifier.name, **dataclasses.asdict(score), "unknown": found.unknown}
    ends = {"f1_low": found.interval.low, "f1_high": found.interval.high}
    shown = [f"{score.f1:.3f}"]
    if np.isfinite(found.interval.low):  # one question gives no interval
        shown.append(f"[{found.interval.low:.3f}, {found.interval.high:.3f}]")
    save(
        plain({**facts, **ends, "solutions": rows}),
        solutions=len(rows),
        steps=sum(len(s.steps) for s in solutions),
    )
    common.closing(
        f"{verifier.name} on {FLAGS.input}",
        {
            "F1": " ".join(shown),
            "solutions with an error": f"{score.errors:,}, its step found in {score.error_accuracy:.3f}",
            "solutions without": f"{score.corrects:,}, none found in {score.correct_accuracy:.3f}",
            "steps without a verdict": f"{found.unknown:.3f}",
        },
    )


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
