r"""Puts hedges into the traces of an embedded task, so that the true faithfulness is known.

    python -m experiments.hedge --model=POLICY --out_dir=DIR
    python -m experiments.train_tiny --task=graph --init=POLICY --traces=DIR/right.jsonl --out_dir=HEDGING \
        --steps=800 --learning_rate=1e-3

The first command samples an output for each of --questions training questions of the policy's task (plain.jsonl) and writes them
hedged in three ways (right.jsonl, random.jsonl, inverted.jsonl), with the questions themselves (questions.jsonl) and
--test_questions others to measure on (test.jsonl). The second teaches one of the three to a policy, which then hedges by itself.

Each step gets a phrase behind it (`c: k - a, so c = 41, maybe`). right: the phrase whose decisiveness is nearest to the
confidence that the policy had in the step; random: the same phrases, shuffled over all steps; inverted: the same
phrases, the surest to the least sure step.

Traces of `experiments.generate`, token statistics included, can be hedged by themselves:

    python -m experiments.hedge --model=POLICY --input=traces.jsonl --output=hedged.jsonl --how=right
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    flags.DEFINE_string("out_dir", None, "folder for questions, plain and hedged traces; without --input")
    flags.DEFINE_integer("questions", 6000, "training questions that are sampled once each", lower_bound=1)
    flags.DEFINE_integer("test_questions", 200, "questions of the test split that are written", lower_bound=1)
    flags.DEFINE_integer("batch_size", 1024, "rows decoded together", lower_bound=1)
    flags.DEFINE_string("input", None, "JSONL of traces with token statistics; goes with --output")
    flags.DEFINE_string("output", None, "JSONL of hedged traces")
    flags.DEFINE_enum(
        "how", "right", ["right", "random", "inverted"], "which step gets which hedge, in --output"
    )
    flags.DEFINE_string("confidence", "entropy", "step confidence that the hedges follow, in [0, 1]")


def main() -> None:
    """Hedge a file, or make all three from new traces."""
    from caspo_jax.errors import UserError
    from caspo_jax.tasks.hedging import HOWS
    from caspo_jax.training.stages.annotate import check_confidence

    if bool(FLAGS.input) != bool(FLAGS.output) or bool(FLAGS.out_dir) == bool(FLAGS.input):
        raise UserError("give --out_dir, or --input and --output")
    check_confidence(FLAGS.confidence, "--confidence")
    check_places()
    policy = common.load_policy()
    if FLAGS.input:
        traces = segmented(policy, Path(FLAGS.input))
        common.closing(
            f"{FLAGS.how} hedges in {FLAGS.output}",
            write_hedged(policy, traces, Path(FLAGS.input), Path(FLAGS.output), FLAGS.how),
        )
        return
    out = Path(FLAGS.out_dir)
    plain = sample_plain(policy, out)
    traces = segmented(policy, plain)
    for how in HOWS:
        rows = write_hedged(policy, traces, plain, out / f"{how}.jsonl", how)
        common.closing(f"{how} hedges in {out / f'{how}.jsonl'}", rows)


def check_places() -> None:
    """Refuses outputs that cannot be written, or that another program wrote: before anything is loaded or sampled."""
    from caspo_jax.outputs import check_own, manifest_path
    from caspo_jax.tasks.hedging import HOWS

    if FLAGS.output:
        common.check_outputs(("output",))
        check_own(FLAGS.output, FLAGS.overwrite)
        return
    common.check_folder("out_dir")
    out = Path(FLAGS.out_dir)
    names = ["plain", *HOWS]
    if not manifest_path(out / "plain.jsonl").exists():  # the questions have none of their own
        names += ["questions", "test"]
    for name in names:
        check_own(out / f"{name}.jsonl", FLAGS.overwrite)


def sample_plain(policy: Any, out: Path) -> Path:
    """questions.jsonl, test.jsonl and plain.jsonl: one output of the policy a training question."""
    from caspo_jax.records import question_to_record
    from caspo_jax.sampling import SampleConfig
    from caspo_jax.store import write_jsonl
    from caspo_jax.training.stages import sample_stage

    task = common.task_of(policy, "--out_dir without --input")
    questions = task.questions("train", FLAGS.questions, seed=FLAGS.seed)
    test = task.questions("test", FLAGS.test_questions, seed=FLAGS.seed)
    with common.Progress(len(questions), "sample") as progress:
        plain = sample_stage(
            policy,
            questions,
            out / "plain.jsonl",
            SampleConfig(max_new_tokens=256, step_delimiter=policy.step_delimiter),
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    # After the manifest had its say: other settings are refused before anything is replaced.
    for name, asked in (("questions", questions), ("test", test)):
        write_jsonl(out / f"{name}.jsonl", map(question_to_record, asked))
    return plain


def segmented(policy: Any, path: Path) -> list[Any]:
    """The traces of a file with their steps and the confidence of each."""
    from caspo_jax.errors import UserError
    from caspo_jax.records import trace_from_record
    from caspo_jax.steps import segment_trace
    from caspo_jax.store import load_records

    delimiter = policy.step_delimiter
    traces = [
        segment_trace(trace, policy.token_bytes, delimiter=delimiter, confidence=FLAGS.confidence)
        for trace in load_records(path, trace_from_record)
    ]
    confidence = [step.confidence for trace in traces for step in trace.steps]
    if None in confidence or not confidence:
        raise UserError(f"{path}: steps without a confidence; give traces that hold token statistics")
    return traces


def write_hedged(policy: Any, traces: Sequence[Any], source: Path, output: Path, how: Any) -> dict[str, int]:
    """The traces hedged, with a manifest; returns how often each phrase was used."""
    from caspo_jax.outputs import Manifest, manifest_path
    from caspo_jax.records import trace_to_record
    from caspo_jax.store import write_jsonl
    from caspo_jax.tasks.hedging import HEDGES, levels

    chosen = iter(levels([step.confidence for t in traces for step in t.steps], how, FLAGS.seed))
    manifest = Manifest.open(
        manifest_path(output),
        program="hedge",
        config={"policy": policy.hash, "how": how, "confidence": FLAGS.confidence, "seed": FLAGS.seed},
        inputs={"input": str(source)},
        overwrite=FLAGS.overwrite,
    )
    counts = [0] * len(HEDGES)
    hedged = []
    for trace in traces:
        mine = [next(chosen) for _ in trace.steps]
        for level in mine:
            counts[level] += 1
        hedged.append(trace_to_record(hedge_trace(trace, mine, policy.tokenizer)))
    write_jsonl(output, hedged)
    manifest.finish(traces=len(hedged), steps=sum(counts))
    phrases = [phrase.removeprefix(", ") or "(plain)" for _, phrase in HEDGES]
    return dict(zip(phrases, counts)) | {"traces": len(hedged)}


def hedge_trace(trace: Any, chosen: list[int], tokenizer: Any) -> Any:
    """The trace with a hedge behind each step, tokenised anew; statistics and verdicts are left behind."""
    from caspo_jax.tasks.hedging import hedge

    parts, position = [], 0
    for step, level in zip(trace.steps, chosen, strict=True):
        parts += [trace.text[position : step.start], hedge(step.text, level)]
        position = step.end
    text = "".join([*parts, trace.text[position:]])
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if trace.finish_reason == "eos":
        ids.append(tokenizer.eos_token_id)
    return dataclasses.replace(
        trace, text=text, token_ids=tuple(ids), steps=(), logprob=None, entropy=None, strategy="hedged"
    )


if __name__ == "__main__":
    define_flags()
    common.run(main)
