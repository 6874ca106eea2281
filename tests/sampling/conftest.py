"""Makes the helpers beside the tests importable under pytest's importlib mode; the tiny checkpoint, loaded once."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from golden_model import GOLDEN, KEY

import caspo_jax as cj
from caspo_jax.types import Question


@pytest.fixture(scope="package")
def model_and_tokenizer():
    return cj.load_pretrained(str(GOLDEN))


@pytest.fixture(scope="package")
def expected():
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="package")
def questions(expected):
    ids, mask = expected["right_input_ids"], expected["right_attention_mask"].astype(bool)
    return [
        Question(id=f"g{i}", prompt_ids=tuple(row[m].tolist())) for i, (row, m) in enumerate(zip(ids, mask))
    ]


@pytest.fixture(scope="package")
def sampled(model_and_tokenizer, questions):
    config = cj.SampleConfig(max_new_tokens=16, num_samples=2, temperature=0.9, step_delimiter="e")
    return config, cj.generate(*model_and_tokenizer, questions, config, KEY)
