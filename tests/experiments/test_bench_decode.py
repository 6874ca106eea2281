"""bench_decode: its arithmetic, its tokenizer, what its loops hold; a whole run at a small size is marked slow."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from flax import nnx

from caspo_jax.models import Decoder, ModelConfig, token_bytes
from experiments.bench_decode import step_work
from experiments.bench_decode_ours import DELIMITED, loop_temporaries, word_tokenizer
from experiments.bench_model import Shape

SHAPE = Shape(512, 64, 128, 2, 4, 2, 16)


def test_a_step_reads_the_weights_once_and_every_key():
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    entries = 2 * layer + 512 * 64
    read, operations = step_work(SHAPE, 4, rows=3, prompt_length=5, new_tokens=7)
    keys = sum(5 + n for n in range(1, 8)) / 7
    assert read == 4 * (entries + 3 * keys * 2 * 2 * 2 * 16)
    assert operations == 3 * (2 * entries + 4 * 2 * 4 * 16 * keys)


def test_words_end_steps_now_and_then():
    vocabulary = token_bytes(word_tokenizer(300), 300)
    assert len(set(vocabulary)) == 300
    assert sum(word.endswith(b"\n\n") for word in vocabulary) == 300 // DELIMITED


def test_the_search_holds_hardly_more_than_plain_sampling():
    """Pruning and forking cost no second cache: at most a twentieth of it beyond the plain loop's temporaries."""
    # So deep that the cache outweighs a question's own tables, which are copied when its slots change hands.
    deep = dataclasses.asdict(dataclasses.replace(SHAPE, num_layers=8))
    config = ModelConfig(dtype="float32", eos_token_ids=(1,), pad_token_id=0, **deep)
    model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    sizes = loop_temporaries(model, {"branches": 10, "prompts": [[1] * 64], "new_tokens": 128})
    assert sizes["cache"] > 8 * 2 * 10 * 2 * 128 * 16 * 4
    assert sizes["cat"] - sizes["plain"] <= 0.05 * sizes["cache"]
    assert sizes["refilled"] - sizes["plain"] <= 0.05 * sizes["cache"]


@pytest.mark.slow
def test_decoding_is_measured(program, tmp_path):
    code, out, err = program(
        "bench_decode",
        vocab_size=512,
        width=32,
        layers=2,
        batch_size=2,
        prompt_length=8,
        new_tokens=48,
        skewed_questions=12,
        cycles=1,
        output=tmp_path / "decode.json",
        quiet="true",
    )
    assert code == 0, err
    assert "of roofline" in out
    measured = json.loads((tmp_path / "decode.json").read_text())
    assert measured["schema"] == {"name": "bench_decode", "version": 1}
    for runs in measured["own"]["cases"].values():
        assert [run["tokens"] for run in runs] == [2 * 48] * 2
    for run in measured["own"]["trees"]["cat"]:
        assert run["steps"] == 48
        assert run["pruned"] > 0 < run["forks"]
    skewed = measured["own"]["skewed"]
    assert skewed["live_slot_steps"] == skewed["tokens"] <= skewed["slot_steps"]
