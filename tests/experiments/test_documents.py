"""Every command that a document or a program's own help shows is one that the program takes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from experiments import common

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "experiments/README.md", "tpu_scripts/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*.py")),
]
COMMAND = re.compile(r"python -m experiments\.([a-z]\w*)((?:\\\\?\n|[^`|\n])*)")


def commands():
    found = {}
    for document in DOCUMENTS:
        for name, rest in COMMAND.findall(document.read_text(encoding="utf-8")):
            words = shlex.split(re.sub(r"\\\\?\n", " ", rest), comments=True)
            # Flags, and what follows one that is written without "=".
            before = ["", *words]
            bare = [b.startswith("--") and "=" not in b for b in before]
            given = tuple(w for w, after in zip(words, bare) if w.startswith("--") or after)
            found[f"{document.name}: {name} {' '.join(given)}"[:90]] = (name, given)
    return found


COMMANDS = commands()


def test_there_are_commands_in_all_of_them():
    shown = {title.split(":")[0] for title in COMMANDS}
    assert {"README.md", "generate.py", "report.py", "quickstart.py"} <= shown
    assert len(COMMANDS) > 20


def programs():
    return [
        p
        for p in sorted((ROOT / "experiments").glob("*.py"))
        if re.search(r"^    common\.run\(main\b", p.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_ci_runs_every_program_for_real():
    ran = "".join((ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("run", "stages"))
    assert len(programs()) > 15
    for path in programs():
        assert f"experiments.{path.stem} " in ran, path.stem


def test_every_program_can_be_quiet_or_speak_json(program, monkeypatch):
    for path in programs():
        module = importlib.import_module(f"experiments.{path.stem}")
        monkeypatch.setattr(module, "main", lambda: None)
        try:
            code, out, err = program(path.stem, "--quiet", "--log_json")
        except flags.IllegalFlagValueError as error:
            if "must have a value other than None" not in str(error):  # a required flag: these two are known
                raise
        else:
            assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("title", COMMANDS)
def test_the_program_takes_the_command(program, monkeypatch, title):
    name, given = COMMANDS[title]
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(module, "main", lambda: None)
    try:
        code, _, err = program(name, *given)
    except flags.IllegalFlagValueError as error:
        # A command that leaves a required flag to the reader ("...") is fine; an unknown flag or value is not.
        if "must have a value other than None" not in str(error):
            raise
    else:
        assert code == 0, err


def test_named_benchmarks_strategies_and_interventions_exist():
    from caspo_jax.evaluation.benchmarks import benchmark_names
    from caspo_jax.evaluation.faithfulness import INTERVENTIONS
    from caspo_jax.evaluation.strategies import STRATEGIES

    known = {
        "benchmarks": {*benchmark_names(), "graph", "chain"},
        "strategies": {*STRATEGIES, "all"},
        "intervention": set(INTERVENTIONS),
    }
    seen = set()
    for title, (_, given) in COMMANDS.items():
        for word in given:
            flag, _, values = word.removeprefix("--").partition("=")
            if flag in known and values != "NAME":
                seen.add(flag)
                assert set(values.split(",")) <= known[flag], title
    assert seen == set(known)


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.stem)
def test_help_is_no_error_and_marks_what_is_required(program, monkeypatch, capsys, path):
    monkeypatch.setattr(importlib.import_module(f"experiments.{path.stem}"), "main", lambda: None)
    with pytest.raises(flags.Error):  # a flag that no program has: those of the program are defined by now
        program(path.stem, "--no_such_flag=1")
    monkeypatch.setattr("sys.argv", [f"{path.stem}.py", "--help"])
    monkeypatch.setattr(common, "tell_sigterm", lambda line: None)  # it would stay for all tests
    with pytest.raises(SystemExit) as ended:
        common.run(lambda: None)
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Config(" not in shown
    marked = set(re.findall(r"--(?:\[no\])?(\w+): (?:<[^>]*>: )?required:", shown))
    assert marked == {name for name in flags.FLAGS if _is_required(name)}


def _is_required(name):
    return any("other than None" in validator.message for validator in flags.FLAGS[name].validators)
