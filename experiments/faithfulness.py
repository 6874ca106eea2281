r"""Does a trace sound as sure as the model is? Decisiveness of the words against the model's internal confidence.

    python -m experiments.faithfulness --traces=traces.jsonl --model=POLICY --out_dir=DIR
    python -m experiments.faithfulness --compare=DIR_A,DIR_B --out_dir=DIR
    python -m experiments.faithfulness --order=DIR_A,DIR_B,DIR_C --out_dir=DIR

Traces: ours (`experiments.generate`), raw .txt, JSONL with a text field, vLLM outputs or completions with log-probs, lm-eval
samples, inspect-ai logs (.json, .eval); with or without <think> blocks. Steps are the paragraphs of the thinking block.

Stages, each with its own file in DIR, each continued where it was stopped; a report with another --seed, --draws or --verifier
takes the place of a finished one only with --overwrite:

  decisiveness  how sure the words sound: hedge lexicon, a local judge (--decisiveness_judge), recorded scores (--scores)
  token         -mean of the top five log-probs / 8 (published), and exp(-entropy)
  hidden        RCC over last-layer states, step by step
  prefix        k continuations sampled before each step: 1 - share that contradicts it
  probe         a linear probe on hidden states, split by question; needs verdicts of steps, or --probe=DIR
  report        tables, report.json, steps.jsonl (a line a step), plots, report.html with the words beside the confidence

--compare holds two finished folders together: differences paired by question, second minus first. --order takes folders from
the most faithful to the least, known by construction (`experiments.hedge`), and says which metrics put them in that order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.confidence.probe import load_probe
from caspo_jax.errors import UserError
from caspo_jax.evaluation import faithfulness as f
from caspo_jax.evaluation.faithfulness import ESTIMATORS, PrefixConfig, Stage, Subject
from caspo_jax.outputs import Manifest, manifest_path
from caspo_jax.store import hash_path, write_jsonl
from caspo_jax.training.stages import Policy
from experiments import common, faithfulness_compare, faithfulness_judges, faithfulness_report, result_files

FLAGS = flags.FLAGS
STAGES = ("decisiveness", "token", "hidden", "prefix", "probe", "report")
WRITTEN = (*STAGES, "traces", "continuations", "steps")  # into --out_dir
# Of these, what is written whole, without a manifest of its own.
RESULTS = ("traces.jsonl", "steps.jsonl", "report.json", "report.txt", "report.html")


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags(required=False)
    flags.DEFINE_string("traces", None, "traces to measure: .jsonl, .json, .eval, .txt, or a folder of .txt")
    flags.DEFINE_string("out_dir", None, "folder of everything that is written", required=True)
    flags.DEFINE_list("compare", None, "two folders of finished reports, A,B: reports B - A")
    flags.DEFINE_list(
        "order", None, "folders of finished reports, the most faithful first: which metrics say so?"
    )
    flags.DEFINE_list("stages", list(STAGES), "stages to run, of " + ", ".join(STAGES))
    flags.DEFINE_enum(
        "steps", "auto", ["auto", "thinking", "all"], "paragraphs of the thinking block, or of all the text; auto: "
        "of all the text if no trace has a thinking block",
    )  # fmt: skip
    common.define_delimiter_flag()
    faithfulness_judges.define_flags()
    flags.DEFINE_integer("num_samples", 10, "continuations a step", lower_bound=1)
    flags.DEFINE_alias("samples", "num_samples")
    flags.DEFINE_float("temperature", 0.8, "sampling temperature of the continuations")
    flags.DEFINE_float("top_p", 0.95, "nucleus mass of the continuations")
    flags.DEFINE_integer("top_k", 0, "most probable tokens kept of the continuations; 0 is off")
    flags.DEFINE_float(
        "min_p",
        0.0,
        "least probability in the continuations, as a share of the most probable token's; 0 is off",
    )
    flags.DEFINE_integer("max_new_tokens", 200, "longest continuation", lower_bound=1)
    flags.DEFINE_bool("ignore_eos", False, "continuations go on after end-of-sequence")
    flags.DEFINE_integer(
        "max_steps", 20, "steps a trace that are sampled: first, last, others at random", lower_bound=1
    )
    flags.DEFINE_integer(
        "batch_size", None, "continuations decoded together; default: by memory", lower_bound=1
    )
    flags.DEFINE_bool("final_norm", False, "hidden states after the final norm; published: before")
    flags.DEFINE_float(
        "mu",
        0.5,
        "RCC: threshold on the attention weights; below .5 sums above 1 occur and count 1",
        0.0,
        1.0,
    )
    flags.DEFINE_float("delta", 0.4, "RCC: weight of the newest step", 0.0, 1.0)
    flags.DEFINE_string("probe", None, "folder of a fitted probe to use; default: fit one, split by question")
    flags.DEFINE_float("probe_l2", 1.0, "the probe's penalty", lower_bound=0)
    flags.DEFINE_integer("draws", 1000, "bootstrap resamples and permutations", lower_bound=1)
    flags.DEFINE_bool("plots", True, "draw the plots")


def main() -> None:
    """Measure or compare."""
    common.check_out_dir()
    for flag, hold in (("compare", faithfulness_compare.compare), ("order", faithfulness_compare.order)):
        folders = FLAGS[flag].value
        if folders:
            if FLAGS.traces:
                raise UserError(f"--{flag} reads finished folders: drop --traces")
            hold([Path(folder) for folder in folders], Path(FLAGS.out_dir))
            return
    unknown = [name for name in FLAGS.stages if name not in STAGES]
    if unknown:
        raise UserError(f"--stages={unknown[0]}: choose from {', '.join(STAGES)}")
    for flag in ("traces", "model"):
        if not FLAGS[flag].value:
            raise UserError(f"--{flag} is missing (or --compare=DIR_A,DIR_B)")
    measure(Path(FLAGS.out_dir))


def measure(out: Path) -> None:
    """All stages on one file of traces."""
    check_places(out)
    policy = common.load_policy()
    check_later_stages(policy)
    subjects, settings = prepared(policy, out)
    verdicts = faithfulness_judges.verdicts_of(policy, subjects)
    stage_flags = set(FLAGS.stages)
    settings_of_report = settings | {
        "seed": FLAGS.seed,
        "draws": FLAGS.draws,
        "verifier": faithfulness_judges.verifier_name(policy, subjects),
    }
    manifest = faithfulness_report.claim(out, settings_of_report) if "report" in stage_flags else None
    left_out: dict[str, str] = {}

    def stage(name: str) -> Stage:
        progress = common.Progress(len(subjects), name, unit="trace")
        return f.Stage(subjects, out, settings, overwrite=FLAGS.overwrite, progress=progress.reach)

    if "decisiveness" in stage_flags:
        scorers, files = faithfulness_judges.build_scorers()
        f.decisiveness_stage(stage("decisiveness"), scorers, files=files)
    forced = [name for name in ("token", "hidden") if name in stage_flags]
    if forced:
        options = {"final_norm": FLAGS.final_norm, "mu": FLAGS.mu, "delta": FLAGS.delta}
        f.forced_stage(stage(" + ".join(forced)), policy.model, forced, **options)
    if "prefix" in stage_flags:
        judge, files = faithfulness_judges.build_contradiction_judge(policy)
        f.prefix_stage(
            stage("prefix"),
            policy.model,
            policy.tokenizer,
            judge,
            prefix_config(policy),
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            files=files,
        )
    if "probe" in stage_flags:
        why = f.probe_stage(
            stage("probe"),
            policy.model,
            verdicts,
            pretrained=FLAGS.probe,
            final_norm=FLAGS.final_norm,
            l2=FLAGS.probe_l2,
            seed=FLAGS.seed,
        )
        left_out |= {} if why is None else {"probe": why}
    if manifest is not None:
        counts = faithfulness_report.write(subjects, verdicts, out, settings_of_report, left_out)
        manifest.finish(**counts)
        common.write_html_report(out, FLAGS.model)
        written = "report.html, report.json, report.txt, steps.jsonl" + (", plots" if FLAGS.plots else "")
        common.closing(f"report in {out}", {"steps": counts["steps"], "files": written})
    else:
        common.closing(
            f"measured, not yet reported, in {out}",
            {"traces": len(subjects), "stages": ", ".join(FLAGS.stages)},
        )


def prefix_config(policy: Policy) -> PrefixConfig:
    """The flags of the continuations."""
    return PrefixConfig(
        samples=FLAGS.num_samples,
        temperature=FLAGS.temperature,
        top_p=FLAGS.top_p,
        top_k=FLAGS.top_k,
        min_p=FLAGS.min_p,
        ignore_eos=FLAGS.ignore_eos,
        max_new_tokens=FLAGS.max_new_tokens,
        max_steps=FLAGS.max_steps,
        delimiter=common.step_delimiter(policy),
    )


def check_later_stages(policy: Policy) -> None:
    """Refuses at once what a stage would refuse whose turn comes hours later."""
    if "prefix" in FLAGS.stages:
        prefix_config(policy)
        faithfulness_judges.consistency(policy)
    if "probe" in FLAGS.stages and FLAGS.probe is not None:
        reads, has = load_probe(FLAGS.probe).weight.size, 2 * policy.model.config.hidden_size
        if reads != has:
            raise UserError(
                f"--probe={FLAGS.probe} is of another model: it reads {reads} features of a step, not {has}"
            )


def check_places(out: Path) -> None:
    """Refuses traces in the place of an output, and files at our output paths that another run, or another program, wrote."""
    given = Path(FLAGS.traces).resolve()
    if given.parent == out.resolve() and given.stem in WRITTEN:
        raise UserError(
            f"--traces={FLAGS.traces}: this program writes a file of that name into --out_dir: choose another folder"
        )
    scorers = faithfulness_judges.scorer_names()
    plots = [f"decisiveness_{scorer}.png" for scorer in scorers]
    plots += [f"traces_{scorer}_{name}.png" for scorer in scorers for name in ESTIMATORS]
    names = [*RESULTS, *([*plots, "agreement.png"] if FLAGS.plots else [])]
    # The manifest of the traces, with which every run begins, stands for all of them.
    result_files.check_files([out / name for name in names], manifest_path(out / "traces.jsonl"))
    if "report" in FLAGS.stages:
        faithfulness_report.check_version(out)


def prepared(policy: Policy, out: Path) -> tuple[list[Subject], dict[str, Any]]:
    """The traces with their steps, written to traces.jsonl; and the settings that every stage depends on."""
    delimiter = common.step_delimiter(policy)
    settings = {
        "traces": hash_path(FLAGS.traces),
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "steps": FLAGS.steps,
        "delimiter": delimiter,
    }
    path = out / "traces.jsonl"
    # Before the manifest: what cannot be read must leave none that refuses better traces.
    sources = f.read_sources(FLAGS.traces)
    subjects = f.prepare(
        sources, policy.tokenizer, policy.model.config, which=FLAGS.steps, delimiter=delimiter
    )
    manifest = Manifest.open(
        manifest_path(path), program="faithfulness/traces", config=settings, overwrite=FLAGS.overwrite
    )
    if not (manifest.complete and path.exists()):
        write_jsonl(path, (f.subject_to_record(subject) for subject in subjects))
        manifest.finish(**f.count_subjects(subjects))
    return subjects, settings


if __name__ == "__main__":
    define_flags()
    common.run(main)
