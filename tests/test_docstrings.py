"""Every example in a docstring runs and prints what it says."""

import dataclasses
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "caspo_jax").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
# What a newcomer tries first, and what else is easiest learned from an example.
SHOWN = {
    "models.pretrained": ("load_pretrained", "save_pretrained"),
    "confidence.token": ("token_stats",),
    "confidence.model_stats": ("token_logprobs",),
    "confidence.hidden": ("rcc",),
    "sampling.api": ("generate", "cat_search", "cat_sweep"),
    "training.losses": ("dpo_loss",),
    "training.step_loss": ("step_dpo_loss",),
    "metrics.calibration": ("expected_calibration_error",),
    "metrics.faithfulness": ("mfg", "cmfg", "cmfg_star"),
    "steps.answers": ("extract_answer", "equivalent"),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("name", SHOWN)
def test_names_that_a_newcomer_tries_have_an_example(name):
    module = importlib.import_module(f"caspo_jax.{name}")
    for function in SHOWN[name]:
        assert ">>> " in getattr(module, function).__doc__, function


# What docs/extending.md hands to functions of one's own: `help` shows no comments.
GIVEN = {
    "confidence.token": ("TokenStats",),
    "confidence.path": ("PathState",),
    "sampling.policy": ("Boundary",),
    "sampling.knobs": ("Knobs",),
    "steps.verifiers": ("VerifyItem",),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_an_extension_is_given_says_what_each_field_holds(name):
    module = importlib.import_module(f"caspo_jax.{name}")
    for record in (getattr(module, given) for given in GIVEN[name]):
        described = inspect.cleandoc(record.__doc__)  # Python 3.13 dedents by itself
        _, _, attributes = described.partition("Attributes:")
        for field in dataclasses.fields(record):
            assert f"\n  {field.name}: " in attributes, field.name
