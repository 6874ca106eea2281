"""docs/settings.md names every setting of pairs and training, with the values of the presets."""

import dataclasses
import re
from pathlib import Path

import pytest

from caspo_jax.preferences.config import PAIR_PRESETS, PairConfig
from caspo_jax.training.config import PRESETS, LossConfig, TrainConfig

DOCUMENT = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
# Its own part of docs/survival.md explains these, and LoRA has flags of its own.
ELSEWHERE = {
    "save_every",
    "keep_checkpoints",
    "best_metric",
    "best_mode",
    "async_checkpoints",
    "skip_nonfinite",
}


def rows(title):
    """{name: its cells} of the table below a heading; a row of several names stands for each."""
    section = re.search(rf"^## {title}.*?\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert section, title
    found = {}
    for line in section[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        names = re.findall(r"`(\w+)`", cells[0])
        values = [re.findall(r"`?(\(.*?\)|[^`,]+)`?(?:, |$)", cell) for cell in cells[1:-1]]
        for i, name in enumerate(names):
            found[name] = [column[i] if column else None for column in values]
    return found


def shown(value):
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return repr(value) if isinstance(value, tuple) else str(value)


def same(said, value):
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        return float(said) == value
    return said == shown(value)


@pytest.mark.parametrize(
    ("title", "kind", "presets"),
    [
        ("Pairs", PairConfig, [PAIR_PRESETS["caspo"], PAIR_PRESETS["paper"]]),
        ("The loss", LossConfig, [PRESETS["caspo"].loss, PRESETS["paper"].loss]),
        ("Training", TrainConfig, [TrainConfig()]),
    ],
)
def test_every_setting_is_there_with_its_values(title, kind, presets):
    found = rows(title)
    names = {field.name for field in dataclasses.fields(kind)} - {"loss", "lora"}
    if kind is LossConfig:
        names.add("loss")
    assert found.keys() == names
    for name in names - ELSEWHERE:
        assert len(found[name]) == len(presets), name
        for said, preset in zip(found[name], presets):
            assert same(said, getattr(preset, name)), (name, said, getattr(preset, name))


def test_presets_differ_in_their_losses_alone():
    """So one column says all of the last table."""
    assert {dataclasses.replace(config, loss=LossConfig()) for config in PRESETS.values()} == {TrainConfig()}
