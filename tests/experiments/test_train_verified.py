"""`train` without annotated traces: what reads verified steps is refused with the ways out."""

import pytest

from tests.experiments.conftest import GOLDENS

FROM_FLAGS = {"preset": "paper", "train.loss.nll_alpha": 1.0, "train.loss.nll_on": "verified"}


@pytest.mark.parametrize(
    "given, words, pairs_alone",
    [
        ({}, ("--preset=caspo", "--train.loss.nll_on=verified"), True),
        ({"train.loss.nll_alpha": 1.0}, ("--preset=caspo",), True),
        ({"preset": "paper", "train.loss.loss": "rft"}, ("--train.loss.loss=rft",), False),
        (FROM_FLAGS, ("--train.loss.nll_on=verified",), False),
    ],
)
def test_verified_steps_that_are_not_given(program, tmp_path, given, words, pairs_alone):
    flags = {
        "model": GOLDENS / "qwen3_tied_fp32",
        "pairs_file": tmp_path / "none",
        "out_dir": tmp_path / "run",
    }
    code, _, err = program("train", **flags, **given)
    assert code == 1
    assert err.count("\n") == 1, err
    for word in (*words, "reads verified steps", "--annotated=A.jsonl"):
        assert word in err, err
    assert ("or train on the pairs alone by --preset=paper" in err) == pairs_alone
    assert not (tmp_path / "run").exists()
