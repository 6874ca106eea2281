"""What the README shows is what runs."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "tokens" in printed
    assert re.search(r"\(1, \d+\)", printed)


def test_every_named_program_exists():
    programs = Path(__file__).parent.parent / "experiments"
    named = set(re.findall(r"experiments\.(\w+)", README))
    assert {"quickstart", "caspo", "generate", "score"} <= named
    for name in named:
        source = (programs / f"{name}.py").read_text(encoding="utf-8")
        assert "def define_flags()" in source
        assert "def main()" in source


def test_flags_in_the_readme_are_flags_of_the_programs():
    sources = "".join(
        p.read_text(encoding="utf-8") for p in (Path(__file__).parent.parent / "experiments").rglob("*.py")
    )
    for command in re.findall(r"python -m experiments\.\w+([^`|\n]*)", README):
        for flag in re.findall(r"--(\w+)", command):
            assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', sources), flag
