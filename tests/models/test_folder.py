import json

import pytest

from caspo_jax.models import hash_checkpoint
from caspo_jax.store import hash_path
from caspo_jax.tasks import get_task


@pytest.fixture
def folder(tmp_path):
    names = (
        "config.json",
        "generation_config.json",
        "caspo.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
    )
    for name in names:
        (tmp_path / name).write_text(name)
    return tmp_path


def test_whatever_is_read_of_a_checkpoint_counts(folder):
    before = hash_checkpoint(folder)
    assert before == hash_path(folder)
    for path in folder.iterdir():
        text = path.read_text()
        path.write_text(text + " ")
        assert hash_checkpoint(folder) != before
        path.write_text(text)
    assert hash_checkpoint(folder) == before


def test_outputs_in_a_checkpoints_folder_make_no_other_policy(folder):
    before = hash_checkpoint(folder)
    for name in ("traces.jsonl", "traces.jsonl.partial", "calibration.json", "report.html", "README.md"):
        (folder / name).write_text("an output")
    (folder / "run" / "round_1" / "policy").mkdir(parents=True)
    (folder / "run" / "round_1" / "policy" / "model.safetensors").write_text("an output")
    assert hash_checkpoint(folder) == before


def test_the_tiny_policies_have_nothing_else():
    path = get_task("graph").policy_path
    assert json.loads((path / "config.json").read_text())
    assert hash_checkpoint(path) == hash_path(path)
