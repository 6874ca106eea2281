"""What every program shares: flags, loading, errors that read well, exit codes, progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# glibc (2.35 and later) asks for huge pages. Training frees large buffers at every step and takes them anew: in pages of 4 KiB
# that is a fifth of an update's time on a CPU. To keep what is freed (MALLOC_MMAP_MAX_=0) is no faster, takes a third more
# memory, and with large models more at every update, as no hole fits the next buffer.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing: it is not needed

from absl import app, flags, logging  # noqa: E402

from caspo_jax import distributed  # noqa: E402
from caspo_jax.compilation import keep_programs  # noqa: E402
from caspo_jax.errors import Interrupted, UserError  # noqa: E402
from experiments.escapes import unescaped  # noqa: E402
from experiments.exhausted import exhausted  # noqa: E402
from experiments.missing import missing  # noqa: E402
from experiments.questions import instruction, instruction_setting, load_questions  # noqa: E402, F401 - and these
from experiments.shared_flags import (  # noqa: E402, F401 - programs reach these through this module
    CAT_FLAGS,
    define_answer_flags,
    define_cat_flags,
    define_confidence_flag,
    define_decoding_flags,
    define_delimiter_flag,
    define_model_flags,
    define_process_flags,
    define_question_flags,
    define_seed_flag,
)
from experiments.stopping import tell_sigterm  # noqa: E402
from experiments.terminal import (  # noqa: E402, F401 - and these
    Progress,
    closing,
    define_terminal_flags,
    say,
    watch,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from caspo_jax.sampling import CatConfig, SampleConfig
    from caspo_jax.tasks import Task
    from caspo_jax.training.stages import Policy
    from caspo_jax.types import Equal, Extract, Question

FLAGS = flags.FLAGS
MOST_NEW_TOKENS = 1024  # of an output whose length no flag says
_KEPT = "what is done is kept: run the same command again to go on"
_LOST = "nothing is kept: run the same command again to start anew"


def run(main: Callable[[], None], *, resumes: bool = True) -> None:
    """Run a program: bad input prints one line and exits with 1, Ctrl-C exits with 130, SIGTERM with 143.

    Args:
      main: what it does once its flags are parsed.
      resumes: whether the same command goes on after an interruption, for the line that says so.
    """
    after = _KEPT if resumes else _LOST
    tell_sigterm(f"stopped by SIGTERM; {after}")
    logging.set_verbosity(logging.WARNING)
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments.") or "config_flags" in module:
            for flag in defined:  # so that --help shows a program's shared flags beside its own
                FLAGS.register_key_flag_for_module(sys.argv[0], flag)
                if any("other than None" in validator.message for validator in flag.validators):
                    flag.help = f"required: {flag.help}"
    app.run(lambda argv: guarded(main, argv, after), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but that --help exits with 0."""
    try:
        return FLAGS(argv)
    except SystemExit:  # of --help and its kin alone
        sys.exit(0)
    except flags.Error:
        return app.parse_flags_with_usage(argv)  # says what is wrong, and exits with 1


def guarded(main: Callable[[], None], argv: Sequence[str], after: str = _KEPT) -> int:
    """The exit code of a program whose flags are parsed; `argv` is what was left over.

    `after` is what Ctrl-C leaves, in words.
    """
    if len(argv) > 1:
        return _fail(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    try:
        _join_processes()
        keep_programs()
        main()
        distributed.finish()
    except UserError as error:
        return _fail(str(error))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except (FileExistsError, NotADirectoryError) as error:
        path = Path(error.filename or "")  # or above it
        file = next((p for p in (path, *path.parents) if p.is_file()), path)
        return _fail(f"{file}: a file is where a folder should be")
    except Exception as error:
        if told := exhausted(error):
            return _fail(told)
        if isinstance(error, ModuleNotFoundError) and (told := missing(error)):
            return _fail(told)
        if isinstance(error, OSError):
            path = Path(error.filename or "input/output")
            if isinstance(error, PermissionError) and path.name.startswith("."):
                path = path.parent  # files are written under another name first, which says nothing
            return _fail(f"{path}: {error.strerror or error}")
        if isinstance(error, RuntimeError) and distributed.process_count() > 1:
            distributed.lost(error)
        raise
    except KeyboardInterrupt:
        print(f"interrupted; {after}", file=sys.stderr)
        if distributed.process_count() > 1:
            distributed.fail("interrupted")
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if distributed.process_count() > 1:
        distributed.fail(message)
    return 1


def _join_processes() -> None:
    """Joins the other processes of a run, if it has any; programs without a model have no flags for it."""
    if "num_processes" in FLAGS:
        distributed.start(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)


def tune_malloc() -> None:
    """Restart the interpreter once with `MALLOC` (Linux): called before the flags are defined, by programs that train."""
    if sys.platform == "linux" and not MALLOC.keys() & os.environ.keys() and sys.orig_argv:
        os.environ.update(MALLOC)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def mesh() -> Mesh | None:
    """The mesh of --mesh; None without one."""
    from caspo_jax.sharding import make_mesh

    return make_mesh(FLAGS.mesh)


def load_policy(path: str | Path | None = None) -> Policy:
    """The policy of --model, or another on the same devices: model, tokenizer, caspo.json."""
    from caspo_jax.training.stages import Policy

    return Policy.load(FLAGS.model if path is None else path, FLAGS.dtype, mesh())


def check_policy(path: str) -> None:
    """Refuses a folder without a config.json, before hours of work that end in loading it."""
    from caspo_jax.models.pretrained import resolve_folder

    if not (resolve_folder(path) / "config.json").is_file():
        raise UserError(f"{path}: no config.json in it, so it is no policy")


def task_of(policy: Policy, flag: str) -> Task:
    """The embedded task of a tiny policy. Raises UserError for any other policy; `flag` says what needs the task."""
    from caspo_jax.tasks import get_task

    if not policy.settings.get("task"):
        raise UserError(f"{flag} needs the tiny policy of an embedded task (caspo.json names its task)")
    return get_task(policy.settings["task"])


def step_delimiter(policy: Policy) -> str:
    """The delimiter of a step: the flag's, else the policy's own."""
    if FLAGS.step_delimiter is not None:
        return unescaped("step_delimiter", FLAGS.step_delimiter)
    return policy.step_delimiter


def room(policy: Policy, questions: Sequence[Question]) -> int:
    """How many tokens of the context the longest prompt leaves; less than none where it does not fit."""
    from caspo_jax.models import encode_prompt

    return policy.model.config.context - max(len(encode_prompt(policy.tokenizer, q)) for q in questions)


def sample_config(policy: Policy, questions: Sequence[Question], **overrides: Any) -> SampleConfig:
    """The decoding flags as a SampleConfig.

    Args:
      policy: whose context bounds the outputs, and whose caspo.json may name the step delimiter.
      questions: without --max_new_tokens an output may be as long as the longest of these leaves, 1,024 tokens at most.
      overrides: fields that the flags do not decide here.
    """
    from caspo_jax.sampling import SampleConfig

    names = ("temperature", "top_p", "top_k", "min_p", "num_samples", "ignore_eos")
    values = {name: getattr(FLAGS, name) for name in names}
    values["max_new_tokens"] = FLAGS.max_new_tokens
    if FLAGS.max_new_tokens is None:
        values["max_new_tokens"] = max(1, min(MOST_NEW_TOKENS, room(policy, questions)))
    values |= {"step_delimiter": step_delimiter(policy)}
    values |= {"stop": tuple(unescaped("stop", text) for text in FLAGS.stop)}
    return SampleConfig(**(values | overrides))


def say_recommended(policy: Policy, sample: SampleConfig) -> None:
    """Says which sampling settings generation_config.json recommends, where no flag was given and it would be another."""
    recommended = json.loads(policy.model.config.generation_json or "{}")
    names = ("temperature", "top_p", "top_k", "min_p")
    others = [
        f"--{name}={recommended[name]:g}"
        for name in names
        if isinstance(recommended.get(name), int | float)
        and recommended[name] != getattr(sample, name)
        and not FLAGS[name].present
    ]
    if others and sample.temperature > 0 and recommended.get("do_sample", True):
        say(
            f"{policy.path}/generation_config.json recommends {' '.join(others)}: give these flags to follow it"
        )


def cat_config(policy: Policy, sample: SampleConfig) -> CatConfig:
    """The search flags as a CatConfig; what they leave open comes from the policy's caspo.json."""
    from caspo_jax.sampling import CatConfig

    names = ("num_branches", "root_branches", "expand", "num_answers", "min_live", "token_budget")
    values = {name: getattr(FLAGS, name) for name in (*names, "path_confidence", "prune", "vote", "gamma")}
    values["stop_decided"] = FLAGS.stop_decided
    threshold, confidence = FLAGS.threshold, FLAGS.confidence
    values["threshold"] = policy.settings.get("threshold", 0.0) if threshold is None else threshold
    values["step_confidence"] = confidence or policy.settings.get("confidence", "mean_logprob")
    return CatConfig(sample=sample, **values)


def answer_functions(policy: Policy) -> tuple[Extract, Equal]:
    """How answers are read (text -> answer) and compared (gold, answer).

    By --answers; without it as the embedded task of a tiny policy has it; else as mathematics.
    """
    from caspo_jax.steps import AnswerKind, equivalent, extract_answer

    task = policy.settings.get("task")
    if FLAGS.answers is None and task is not None:
        return task_answer, same_text
    kind = AnswerKind(FLAGS.answers or "math")
    return (lambda text: extract_answer(text, kind)), (lambda gold, answer: equivalent(gold, answer, kind))


def same_text(gold: str, answer: str) -> bool:
    """Equality of strings: the comparison of the embedded tasks."""
    return gold == answer


def task_answer(text: str) -> str | None:
    """The answer of an embedded task's solution."""
    from caspo_jax.tasks import extract_answer

    return extract_answer(text)


def write_html_report(out: str | Path, model: str | None) -> Path | None:
    """OUT/report.html from what the folder holds; tokens are spelled by the tokenizer of `model`, if that is a folder."""
    from caspo_jax.evaluation.report import write_report

    if not distributed.is_writer():
        return None
    tokenizer = model if model is not None and Path(model).is_dir() else None
    with Progress(1, "report.html", unit="part") as progress:
        return write_report([out], Path(out) / "report.html", tokenizer=tokenizer, progress=progress.reach)


def check_outputs(
    outputs: Sequence[str],
    inputs: Sequence[str] = ("input",),
    derived: Mapping[str, Path | None] | None = None,
) -> None:
    """Refuses two names for one file among a program's inputs and outputs, also with --overwrite: it would be lost.

    Args:
      outputs: flags of output files; one that was not given counts for nothing.
      inputs: flags of input files, likewise.
      derived: what further outputs are -> their path.

    Raises:
      UserError: an output is an input, or another output; names both.
    """
    files: dict[str, Any] = {f"--{flag}": getattr(FLAGS, flag) for flag in (*inputs, *outputs)}
    taken: dict[Path, str] = {}
    for name, path in (files | dict(derived or {})).items():
        if path is None:
            continue
        before = taken.setdefault(Path(path).resolve(), name)
        if before != name:
            raise UserError(f"{before} and {name} are the same file, {path}: write to another one")


def require_folder(path: str | None, flag: str) -> Path:
    """The path of an input folder, checked."""
    if path is None or not Path(path).is_dir():
        raise UserError(f"--{flag}={path}: no such folder")
    return Path(path)


def check_out_dir() -> None:
    """Refuses an --out_dir that is a file or lies below one: before the work."""
    path = Path(FLAGS.out_dir)
    file = next((p for p in (path, *path.parents) if p.is_file()), None)
    if file is not None:
        raise UserError(f"--out_dir={path}: {file} is a file, where a folder should be")
