"""Traces to annotated traces: steps, step confidences, verdicts, answers.

python -m experiments.annotate --model=POLICY --input=traces.jsonl --output=annotated.jsonl --verifier=equations
python -m experiments.annotate ... --dataset_dir=DIR     # also the step dataset: parquet with a card
python -m experiments.annotate --model=POLICY --labelled=prm800k.jsonl --output=annotated.jsonl

--labelled takes solutions whose steps others have judged (PRM800K, ProcessBench, Math-Shepherd): their verdicts, and the policy's
own confidences. `pairs` goes on from there as from sampled traces.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags

from caspo_jax.types import VERDICTS, Trace
from experiments import common, verifiers

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_answer_flags()
    verifiers.define_flags()
    flags.DEFINE_string("input", None, "JSONL of traces")
    flags.DEFINE_string(
        "labelled", None, "instead of --input: JSONL of PRM800K, ProcessBench or Math-Shepherd records"
    )
    flags.DEFINE_enum(
        "neutral", "unknown", ["unknown", "correct", "wrong"], "what PRM800K's label 0 means, for --labelled"
    )
    flags.DEFINE_string("output", None, "JSONL of annotated traces", required=True)
    common.define_delimiter_flag()
    common.define_confidence_flag("that the records carry")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "rows decoded together, by verifiers that decode; default: by memory. Of --labelled solutions read together; default 64",
        lower_bound=1,
    )
    flags.DEFINE_string("dataset_dir", None, "write the step dataset with confidence annotations here")


def main() -> None:
    """Annotate a file."""
    from caspo_jax.errors import UserError
    from caspo_jax.records import trace_from_record
    from caspo_jax.store import each_record

    if (FLAGS.input is None) == (FLAGS.labelled is None):
        raise UserError("give one of --input and --labelled")
    if FLAGS.labelled is not None and FLAGS["verifier"].present:
        raise UserError("--verifier goes with --input: --labelled has its verdicts")
    common.check_outputs(("output",), ("input", "labels", "labelled"))
    verifiers.check_confidence()
    if FLAGS.dataset_dir:
        from caspo_jax.preferences import check_step_dataset

        check_step_dataset(FLAGS.dataset_dir, FLAGS.overwrite)
    confidence = annotate_traces() if FLAGS.labelled is None else annotate_labelled()
    counts: collections.Counter[str] = collections.Counter()
    annotated = counted(each_record(FLAGS.output, trace_from_record), counts)
    if FLAGS.dataset_dir:
        write_dataset(annotated, confidence)
    collections.deque(annotated, maxlen=0)  # where nothing else reads them: to count
    shown: dict[str, int] = {
        name: counts[name] for name in (*sorted(VERDICTS), "no confidence") if counts[name]
    }
    common.closing(f"annotated traces in {FLAGS.output}", {"traces": counts["traces"], **shown})


def counted(traces: Iterable[Trace], counts: collections.Counter[str]) -> Iterator[Trace]:
    """The same traces, added to the counts."""
    for trace in traces:
        counts.update(["traces", *(step.verdict for step in trace.steps)])
        # Of traces without log-probs no step has one, and `pairs` would use none of them.
        counts["no confidence"] += sum(step.confidence is None for step in trace.steps)
        yield trace


def write_dataset(annotated: Iterable[Trace], confidence: str) -> None:
    """The step dataset of --output, with a manifest in its folder."""
    from caspo_jax.outputs import Manifest, manifest_path
    from caspo_jax.preferences import write_step_dataset

    # A manifest without a card is of a run that had no step to write.
    written = (Path(FLAGS.dataset_dir) / "README.md").exists()
    manifest = Manifest.open(
        manifest_path(FLAGS.dataset_dir, folder=True),
        program="annotate/dataset",
        config={"confidence": confidence},
        inputs={"annotated": FLAGS.output},
        overwrite=FLAGS.overwrite or not written,
    )
    counts = write_step_dataset(
        annotated, FLAGS.dataset_dir, confidence=confidence, overwrite=FLAGS.overwrite
    )
    manifest.finish(**counts)


def annotate_traces() -> str:
    """What was sampled, by the verifier; returns the name of the step confidence."""
    from caspo_jax.records import trace_from_record
    from caspo_jax.store import each_record, read_jsonl
    from caspo_jax.training.stages import annotate_stage

    next(read_jsonl(FLAGS.input), None)  # what cannot be read is not found out after the policy is loaded
    policy = common.load_policy()
    confidence = verifiers.trace_confidence(policy)
    verifiers.check(policy)
    if verifiers.needs_gold(policy):  # the stage reads the traces itself: only golds are looked for here
        verifiers.check_golds(each_record(FLAGS.input, trace_from_record))
    extract, equal = common.answer_functions(policy)
    delimiter = common.step_delimiter(policy)
    verifier = verifiers.build(policy, extract, equal)
    with common.Progress(0, "annotate", unit="trace") as progress:
        annotate_stage(
            policy,
            FLAGS.input,
            FLAGS.output,
            verifier,
            extract=extract,
            equal=equal,
            answer_kind=verifiers.answer_kind(policy),
            confidence=confidence,
            delimiter=delimiter,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    return confidence


def annotate_labelled() -> str:
    """What others have judged, with the policy's confidences; returns the name of the step confidence."""
    from caspo_jax.training.stages import labelled_stage

    policy = common.load_policy()
    confidence = verifiers.trace_confidence(policy)
    extract, equal = common.answer_functions(policy)
    with common.Progress(0, "annotate", unit="solution") as progress:
        labelled_stage(
            policy,
            FLAGS.labelled,
            FLAGS.output,
            extract=extract,
            equal=equal,
            answer_kind=verifiers.answer_kind(policy),
            confidence=confidence,
            delimiter=common.step_delimiter(policy),
            neutral=FLAGS.neutral,
            batch_size=FLAGS.batch_size or 64,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    return confidence


if __name__ == "__main__":
    define_flags()
    common.run(main)
