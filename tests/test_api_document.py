"""docs/api.md lists what each room exports; `python -m tests.test_api_document` writes it anew."""

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from tests.test_imports import ORDER, PACKAGE

DOCUMENT = Path(__file__).parent.parent / "docs" / "api.md"
WITHIN = {
    "evaluation": ("benchmarks", "faithfulness", "strategies")
}  # rooms within a room, with names to import
ROOMS = [
    within
    for name in ORDER
    if (PACKAGE / name).is_dir()
    for within in (name, *(f"{name}.{inner}" for inner in WITHIN.get(name, ())))
]
HEAD = """# The library's names

What `caspo_jax` and its rooms export, a line each, for finding what there is. `help(caspo_jax.metrics.auroc)` has a name's
mathematics, arguments with their shapes, and errors. The rooms stand in the order of their imports: each uses only those
above it ([design.md](design.md)). [extending.md](extending.md) has examples of them at work. This page is written from
the code by `python -m tests.test_api_document`.
"""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for module in ["caspo_jax", *(f"caspo_jax.{room}" for room in ROOMS)]:
        room = importlib.import_module(module)
        title = "`import caspo_jax as cj`" if module == "caspo_jax" else f"`{module}`"
        parts += [f"## {title}\n", f"{_first_line(room)}\n"]
        parts += ["| name | what it is |", "| --- | --- |"]
        parts += [_row(name, getattr(room, name)) for name in sorted(room.__all__, key=str.lower)]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, value: object) -> str:
    if inspect.ismodule(value):
        return f"| `{name}` | the room `{value.__name__}`, below |"
    value = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(value):
        arguments = ", ".join(_argument(p) for p in inspect.signature(value).parameters.values())
        return f"| `{name}({arguments})` | {_cell(_first_line(value))} |"
    if inspect.isclass(value):
        return f"| `{name}` | {_cell(_first_line(value))} |"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"| `{name}` | " + ", ".join(f"`{item}`" for item in value) + " |"
    return f"| `{name}` | " + _cell(f"`{value!r}`" if isinstance(value, str | int) else "a type") + " |"


def _argument(parameter: inspect.Parameter) -> str:
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
        parameter.kind, ""
    )
    return star + parameter.name


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").splitlines()[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def test_the_page_lists_what_the_rooms_export():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m tests.test_api_document"


def test_a_room_that_an_example_imports_from_is_on_the_page():
    page = DOCUMENT.read_text(encoding="utf-8")
    for example in (DOCUMENT.parent / "extending.md", DOCUMENT.parent.parent / "README.md"):
        named = re.findall(
            r"^from (caspo_jax\.[\w.]+) import", example.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert named
        for room in set(named) - {"caspo_jax.types"}:  # most of its names stand at the top
            assert f"\n## `{room}`\n" in page, room


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
