"""Who judges in a faithfulness report, by flag: the words, contradictions, the steps."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import faithfulness as f
from caspo_jax.evaluation.faithfulness import ContradictionJudge, DecisivenessScorer, Subject
from caspo_jax.steps import StatedEquations, Verifier, verify_traces
from caspo_jax.store import hash_path
from caspo_jax.training.stages import Policy
from experiments import common
from experiments.verifiers import generate_with

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags that choose them."""
    flags.DEFINE_multi_string("scores", [], "JSONL of recorded decisiveness scores (repeatable)")
    flags.DEFINE_string("decisiveness_judge", None, "checkpoint that rates decisiveness by a rubric")
    flags.DEFINE_string("rubric", None, "text file with the rubric; default: the packaged one")
    flags.DEFINE_bool("lexicon", True, "score decisiveness with the hedge lexicon")
    flags.DEFINE_enum(
        "consistency", "auto", ["auto", "exact", "answers", "judge"], "who says what contradicts. exact: the embedded "
        "task's checker; answers: what the paragraphs come to; judge: --contradiction_judge; auto: exact for a tiny "
        "policy, judge if one is given, else answers",
    )  # fmt: skip
    flags.DEFINE_string("contradiction_judge", None, "checkpoint that judges contradictions")
    flags.DEFINE_enum(
        "verifier", "auto", ["auto", "recorded", "exact", "equations", "none"], "verdicts of steps, for the probe and "
        "factual calibration; auto: recorded ones, else exact for a tiny policy, else none",
    )  # fmt: skip


def scorer_names() -> list[str]:
    """The names of the decisiveness scorers of the flags."""
    names = ["lexicon"] if FLAGS.lexicon else []
    names += ["judge"] if FLAGS.decisiveness_judge else []
    return [*names, *map(_recorded, range(len(FLAGS.scores)))]


def _recorded(index: int) -> str:
    return "recorded" if len(FLAGS.scores) == 1 else f"recorded_{index + 1}"


def build_scorers() -> tuple[list[DecisivenessScorer], dict[str, str]]:
    """The decisiveness scorers of the flags, and hashes of the files behind them."""
    scorers: list[DecisivenessScorer] = [f.LexiconScorer()] if FLAGS.lexicon else []
    files: dict[str, str] = {}
    if FLAGS.decisiveness_judge:
        rubric = f.load_rubric(FLAGS.rubric) if FLAGS.rubric else f.load_rubric()
        judge = common.load_policy(FLAGS.decisiveness_judge)
        scorers.append(f.LocalDecisivenessJudge(generate_with(judge, temperature=0.0), rubric))
        files["judge"] = judge.hash
        if FLAGS.rubric:
            files["rubric"] = hash_path(FLAGS.rubric)
    elif FLAGS.rubric:
        raise UserError("--rubric goes with --decisiveness_judge")
    for index, path in enumerate(FLAGS.scores):
        name = _recorded(index)
        scorers.append(f.read_scores(path, name))
        files[name] = hash_path(path)
    if not scorers:
        raise UserError("nothing scores decisiveness: give --lexicon, --decisiveness_judge or --scores")
    return scorers, files


def consistency(policy: Policy) -> str:
    """The value of --consistency, with `auto` resolved; refuses what cannot be built."""
    name, task = FLAGS.consistency, policy.settings.get("task")
    if name == "auto":
        name = "judge" if FLAGS.contradiction_judge else "exact" if task else "answers"
    if FLAGS.contradiction_judge and name != "judge":
        raise UserError(f"--contradiction_judge goes with --consistency=judge, not {name}")
    if name == "exact":
        common.task_of(policy, "--consistency=exact")
    elif name == "judge":
        if not FLAGS.contradiction_judge:
            raise UserError("--consistency=judge needs --contradiction_judge=CHECKPOINT")
        common.check_policy(FLAGS.contradiction_judge)
    return name


def build_contradiction_judge(policy: Policy) -> tuple[ContradictionJudge, dict[str, str]]:
    """The judge of --consistency, and hashes of the files behind it."""
    name = consistency(policy)
    if name == "exact":
        return common.task_of(policy, "--consistency=exact").contradiction(), {}
    if name == "answers":
        return f.AnswerEquivalence(), {}
    judge = common.load_policy(FLAGS.contradiction_judge)
    return f.LocalContradictionJudge(generate_with(judge, temperature=0.0)), {"judge": judge.hash}


def verifier_name(policy: Policy, subjects: Sequence[Subject]) -> str:
    """The value of --verifier, with `auto` resolved."""
    if FLAGS.verifier != "auto":
        return FLAGS.verifier
    if any(step.verdict != "unknown" for s in subjects for step in s.trace.steps):
        return "recorded"
    return "exact" if policy.settings.get("task") else "none"


def verdicts_of(policy: Policy, subjects: Sequence[Subject]) -> dict[str, list[bool | None]]:
    """Trace id -> for each step whether it is right, None where that is not known."""
    name = verifier_name(policy, subjects)
    traces = [s.trace for s in subjects]
    if name in ("exact", "equations"):
        exact = name == "exact"
        verifier: Verifier = (
            common.task_of(policy, "--verifier=exact").verifier() if exact else StatedEquations()
        )
        traces = verify_traces(traces, verifier)
    known = {"correct": True, "wrong": False, "unknown": None}
    return {t.id: [None if name == "none" else known[step.verdict] for step in t.steps] for t in traces}
