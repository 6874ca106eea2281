"""Traces to annotated traces: steps, step confidences, verdicts, answers.

python -m experiments.annotate --model=POLICY --input=traces.jsonl --output=annotated.jsonl --verifier=equations
python -m experiments.annotate ... --dataset_dir=DIR     # also the step dataset: parquet with a card
python -m experiments.annotate --model=POLICY --labelled=prm800k.jsonl --output=annotated.jsonl

--labelled takes solutions whose steps others have judged (PRM800K, ProcessBench, Math-Shepherd): their verdicts, and the policy's
own confidences. `pairs` goes on from there as from sampled traces.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import common, verifiers

if TYPE_CHECKING:
    from caspo_jax.types import Trace

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
        64,
        "rows decoded together, by verifiers that decode; solutions read together",
        lower_bound=1,
    )
    flags.DEFINE_string("dataset_dir", None, "write the step dataset with confidence annotations here")


def main() -> None:
    """Annotate a file."""
    from caspo_jax.errors import UserError
    from caspo_jax.records import trace_from_record
    from caspo_jax.store import load_records

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
    annotated = load_records(FLAGS.output, trace_from_record)
    verdicts = collections.Counter(step.verdict for trace in annotated for step in trace.steps)
    if FLAGS.dataset_dir:
        write_dataset(annotated, confidence)
    common.closing(
        f"annotated traces in {FLAGS.output}", {"traces": len(annotated), **dict(sorted(verdicts.items()))}
    )


def write_dataset(annotated: Sequence[Trace], confidence: str) -> None:
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
    from caspo_jax.store import load_records
    from caspo_jax.training.stages import annotate_stage

    traces = load_records(FLAGS.input, trace_from_record)
    policy = common.load_policy()
    confidence = verifiers.trace_confidence(policy)
    verifiers.check(policy)
    if verifiers.needs_gold(policy):
        verifiers.check_golds(traces)
    extract, equal = common.answer_functions(policy)
    delimiter = common.step_delimiter(policy)
    verifier = verifiers.build(policy, extract, equal)
    with common.Progress(len(traces), "annotate", unit="trace") as progress:
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
            batch_size=FLAGS.batch_size,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    return confidence


if __name__ == "__main__":
    define_flags()
    common.run(main)
