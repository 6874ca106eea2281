"""Files of traces, and the tokenizer and configuration of the tiny policy that reads them."""

import json

import pytest

from caspo_jax.models import load_tokenizer
from caspo_jax.models.config import ModelConfig
from caspo_jax.tasks import get_task

TASK = get_task("graph")
QUESTION = "a = 41; k: a * 2. k?"
TEXT = "k: a * 2, so k = 82\n\nanswer: 82"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TASK.policy_path)


@pytest.fixture(scope="module")
def config():
    return ModelConfig.from_hf(TASK.policy_path)


@pytest.fixture
def file(tmp_path):
    def save(*records, name="in.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        return path

    return save
