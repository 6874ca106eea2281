"""A name given twice, and formulas that do not give one value a step or a path."""

import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.confidence import (
    TokenStats,
    needed_fields,
    path_confidence,
    path_init,
    path_value,
    register_path_confidence,
    register_step_confidence,
    step_confidence,
)
from caspo_jax.confidence.path import _VALUES, PATH_CONFIDENCES
from caspo_jax.confidence.registering import is_registered
from caspo_jax.confidence.step import _FORMULAS, STEP_CONFIDENCES
from caspo_jax.errors import UserError

CELL = (
    "def formula(xp, stats, mask, size):\n    return xp.max(xp.where(mask, stats.entropy, {least}), axis=-1)"
)
STATS = TokenStats(entropy=np.array([[0.1, 0.2], [0.3, 0.4]]))
MASK = np.ones((2, 2), bool)


@pytest.fixture(autouse=True)
def restored():
    tables = [(table, dict(table)) for table in (_FORMULAS, STEP_CONFIDENCES, _VALUES, PATH_CONFIDENCES)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def run_cell(text, **names):
    space = dict(names)
    exec(compile(text, "<cell>", "exec"), space)
    return space["formula"]


def test_a_cell_may_run_again_and_may_not_bring_another_formula():
    first = run_cell(CELL.format(least=-1))
    register_step_confidence("loudest", ("entropy",), first)
    register_step_confidence("loudest", ("entropy",), run_cell("# moved\n" + CELL.format(least=-1)))
    assert _FORMULAS["loudest"][1] is first  # what is compiled has read it
    for again in (run_cell(CELL.format(least=-2)), run_cell(CELL.format(least="LEAST"), LEAST=-1)):
        with pytest.raises(UserError, match="'loudest' exists already and is another function"):
            register_step_confidence("loudest", ("entropy",), again)
    with pytest.raises(UserError, match="'loudest' exists already with other fields"):
        register_step_confidence("loudest", ("logprob",), first)
    with pytest.raises(UserError, match="'entropy' exists already"):
        register_step_confidence("entropy", ("entropy",), first)


def test_what_a_function_may_see_differ_makes_it_another_one():
    def scaled(by):
        return lambda xp, state: by * state.last

    known = {"scaled": scaled(1)}
    assert is_registered("path confidence", "scaled", known["scaled"], known)
    assert not is_registered("path confidence", "other", scaled(1), known)
    for other in (scaled(2), lambda xp, state, by=2: by * state.last, max, None):
        with pytest.raises(UserError, match="choose another name"):
            is_registered("path confidence", "scaled", other, known)
    reading = [run_cell("def formula():\n    return BY", BY=by) for by in (1, 2)]
    with pytest.raises(UserError, match="choose another name"):
        is_registered("path confidence", "reading", reading[1], {"reading": reading[0]})


def test_a_formula_that_averages_over_the_steps_is_refused():
    """Broadcast, every step would have had the same confidence."""
    register_step_confidence("flat", "entropy", lambda xp, stats, mask, size: xp.exp(-xp.mean(stats.entropy)))
    register_step_confidence("tokens", ("entropy",), lambda xp, stats, mask, size: stats.entropy)
    assert needed_fields("flat") == ("entropy",)
    for name, shape in (("flat", r"\(\)"), ("tokens", r"\(2, 2\)")):
        for stats in (STATS, TokenStats(entropy=jnp.asarray(STATS.entropy))):
            with pytest.raises(UserError, match=rf"'{name}' gave shape {shape} for steps of shape \(2,\)"):
                step_confidence(name, stats, MASK)
    assert step_confidence("flat", TokenStats(entropy=np.zeros(2)), MASK[0]) == 1  # of one step it may


def test_a_path_formula_that_gives_one_number_is_refused():
    register_path_confidence("half", lambda xp, state: 0.5)
    with pytest.raises(UserError, match=r"'half' gave shape \(\) for paths of shape \(2,\)"):
        path_confidence("half", np.full((2, 3), 0.9))
    with pytest.raises(UserError, match=r"'half' gave shape \(\) for paths of shape \(4,\)"):
        path_value("half", path_init((4,)))
