r"""Appends hedges to the steps of traces in a known way, so that it is known how faithful the words are.

    python -m experiments.hedge --model=POLICY --out_dir=DIR
    python -m experiments.train_tiny --task=graph --init=POLICY --traces=DIR/right.jsonl --out_dir=HEDGING \
        --steps=800 --learning_rate=1e-3

The first command samples an output (or --num_samples) for each of --questions training questions of the policy's task (plain.jsonl) and writes them
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

from caspo_jax.errors import UserError
from caspo_jax.outputs import Manifest, check_own, manifest_path
from caspo_jax.records import question_to_record, trace_from_record, trace_to_record
from caspo_jax.sampling import SampleConfig
from caspo_jax.steps import segment_trace
from caspo_jax.store import load_records, write_jsonl
from caspo_jax.tasks.hedging import HEDGES, HOWS, How, hedge, levels
from caspo_jax.training.stages import Policy, sample_stage
from caspo_jax.types import Trace
from experiments import common, result_files, verifiers

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_decoding_flags()  # of the traces that are sampled into --out_dir
    FLAGS.set_default("batch_size", 1024)
    FLAGS.set_default("max_new_tokens", 256)
    FLAGS["max_new_tokens"].help = "longest output, in tokens"
    flags.DEFINE_string("out_dir", None, "folder for questions, plain and hedged traces; without --input")
    flags.DEFINE_integer("questions", 6000, "training questions that are asked", lower_bound=1)
    flags.DEFINE_integer("test_questions", 200, "questions of the test split that are written", lower_bound=1)
    flags.DEFINE_string("input", None, "JSONL of traces with token statistics; goes with --output")
    flags.DEFINE_string("output", None, "JSONL of hedged traces")
    flags.DEFINE_enum(
        "how", "right", ["right", "random", "inverted"], "which step gets which hedge, in --output"
    )
    common.define_confidence_flag("that the hedges follow")


def main() -> None:
    """Hedge a file, or make all three from new traces."""
    if bool(FLAGS.input) != bool(FLAGS.output) or bool(FLAGS.out_dir) == bool(FLAGS.input):
        raise UserError("give --out_dir, or --input and --output")
    verifiers.check_confidence()
    check_places()
    policy = common.load_policy()
    if FLAGS.input:
        traces = segmented(policy, Path(FLAGS.input))
        common.closing(
            f"{FLAGS.how} hedges in {FLAGS.output}",
            write_hedged(policy, traces, Path(FLAGS.input), Path(FLAGS.output), FLAGS.how),
        )
        return
    sampling = common.sample_config(policy, ())  # before the folder is claimed: it may be refused
    out = Path(FLAGS.out_dir)
    begun = manifest_path(out / "plain.jsonl")
    with result_files.claimed_folder(out, "hedge", settings(policy), begun) as finish:
        plain = sample_plain(policy, out, sampling)
        traces = segmented(policy, plain)
        for how in HOWS:
            rows = write_hedged(policy, traces, plain, out / f"{how}.jsonl", how)
            common.closing(f"{how} hedges in {out / f'{how}.jsonl'}", rows)
        finish(traces=len(traces))


def settings(policy: Policy) -> dict[str, Any]:
    """What shapes everything in --out_dir, for the folder's manifest."""
    names = ["questions", "test_questions", "seed", "batch_size", "max_new_tokens", "num_samples"]
    names += ["temperature", "top_p", "top_k", "min_p", "ignore_eos", "stop"]
    return {name: FLAGS[name].value for name in names} | {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "delimiter": common.step_delimiter(policy),
        "confidence": verifiers.trace_confidence(policy),
    }


def check_places() -> None:
    """Refuses outputs that cannot be written, or that another program wrote: before anything is loaded or sampled."""
    if FLAGS.output:
        common.check_outputs(("output",))
        check_own(FLAGS.output, FLAGS.overwrite)
        return
    common.check_out_dir()
    out = Path(FLAGS.out_dir)
    names = ["plain", *HOWS]
    if not manifest_path(out / "plain.jsonl").exists():  # the questions have none of their own
        names += ["questions", "test"]
    for name in names:
        check_own(out / f"{name}.jsonl", FLAGS.overwrite)


def sample_plain(policy: Policy, out: Path, sampling: SampleConfig) -> Path:
    """questions.jsonl, test.jsonl and plain.jsonl: --num_samples outputs of the policy a training question."""
    task = common.task_of(policy, "--out_dir without --input")
    questions = task.questions("train", FLAGS.questions, seed=FLAGS.seed)
    test = task.questions("test", FLAGS.test_questions, seed=FLAGS.seed)
    with common.Progress(len(questions), "sample") as progress:
        plain = sample_stage(
            policy,
            questions,
            out / "plain.jsonl",
            sampling,
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    # After the manifest had its say: other settings are refused before anything is replaced.
    for name, asked in (("questions", questions), ("test", test)):
        write_jsonl(out / f"{name}.jsonl", map(question_to_record, asked))
    return plain


def segmented(policy: Policy, path: Path) -> list[Trace]:
    """The traces of a file with their steps and the confidence of each."""
    delimiter = common.step_delimiter(policy)
    confidence = verifiers.trace_confidence(policy)

    def parse(record: dict[str, Any]) -> Trace:
        trace = trace_from_record(record)
        trace = segment_trace(trace, policy.token_bytes, delimiter=delimiter, confidence=confidence)
        for number, step in enumerate(trace.steps):
            if step.confidence is None:
                raise UserError(f"step {number} has no confidence: give traces that hold token statistics")
            if not 0 <= step.confidence <= 1:
                raise UserError(f"step {number} has the confidence {step.confidence:g}, outside [0, 1]")
        return trace

    traces = load_records(path, parse)
    if not any(trace.steps for trace in traces):
        raise UserError(f"{path}: no step in it that could be hedged")
    return traces


def write_hedged(
    policy: Policy, traces: Sequence[Trace], source: Path, output: Path, how: How
) -> dict[str, int]:
    """The traces hedged, with a manifest; returns how often each phrase was used."""
    confidence = [step.confidence for trace in traces for step in trace.steps]
    chosen = iter(levels(confidence, how, FLAGS.seed))  # type: ignore[arg-type]  # `segmented` refuses None
    manifest = Manifest.open(
        manifest_path(output),
        program="hedge",
        config={
            "policy": policy.hash,
            "how": how,
            "confidence": verifiers.trace_confidence(policy),
            "seed": FLAGS.seed,
            **({} if FLAGS.step_delimiter is None else {"delimiter": common.step_delimiter(policy)}),
        },
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


def hedge_trace(trace: Trace, chosen: Sequence[int], tokenizer: Any) -> Trace:
    """The trace with a hedge behind each step, tokenised anew; statistics and verdicts are left behind."""
    parts, position = [], 0
    for step, level in zip(trace.steps, chosen, strict=True):
        parts += [trace.text[position : step.start], hedge(step.text, level)]
        position = step.end
    text = "".join([*parts, trace.text[position:]])
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if trace.finish_reason == "eos" and trace.token_ids:
        # By the token that ended it: chat models have several, of which the tokenizer names one at most.
        ids.append(trace.token_ids[-1])
    return dataclasses.replace(
        trace, text=text, token_ids=tuple(ids), steps=(), logprob=None, entropy=None, strategy="hedged"
    )


if __name__ == "__main__":
    define_flags()
    common.run(main)
