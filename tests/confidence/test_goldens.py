"""Teacher-forced statistics of the golden checkpoints equal those that transformers wrote down."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from caspo_jax import padding
from caspo_jax.confidence import model_token_stats, scoring, token_logprobs_and_entropy
from caspo_jax.confidence.scoring import score_outputs
from caspo_jax.errors import UserError
from caspo_jax.models import load_pretrained

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(
    scope="module", params=["qwen3_tied_fp32", "qwen2_untied_bf16_sharded", "llama31_untied_fp32"]
)
def case(request):
    path = GOLDEN / request.param
    return load_pretrained(path, dtype="float32")[0], np.load(path / "expected.npz")


def test_logprobs_and_entropies(case):
    model, expected = case
    ids, mask = expected["right_input_ids"], expected["right_attention_mask"] == 1
    scored = nnx.jit(token_logprobs_and_entropy, static_argnames="chunk")
    logprob, entropy = scored(model, ids, mask, chunk=10)
    both = mask[:, 1:] & mask[:, :-1]
    np.testing.assert_allclose(logprob[both], expected["right_token_logps"][both], atol=1e-4)
    np.testing.assert_allclose(entropy[both], expected["right_entropy_nats"][:, :-1][both], atol=1e-4)


@pytest.mark.parametrize("case", ["qwen3_tied_fp32"], indirect=True)
def test_statistics_of_the_greedy_continuation(case):
    model, expected = case
    ids = np.concatenate([expected["left_input_ids"], expected["greedy_new_tokens"]], axis=1)
    mask = np.concatenate([expected["left_attention_mask"] == 1, np.ones((3, 32), bool)], axis=1)
    fields = ("entropy", "logprob", "top1_id", "mean_top20_logprob")
    stats = nnx.jit(lambda model, ids, mask: model_token_stats(model, ids, mask, fields))(model, ids, mask)
    new = slice(-32, None)
    np.testing.assert_array_equal(stats.top1_id[:, new], expected["greedy_new_tokens"])
    np.testing.assert_allclose(stats.logprob[:, new], expected["greedy_token_logps"], atol=1e-4)
    np.testing.assert_allclose(stats.entropy[:, new], expected["greedy_entropy_nats"], atol=1e-4)
    np.testing.assert_allclose(
        -stats.mean_top20_logprob[:, new], expected["greedy_deepconf_top20"], atol=1e-4
    )
    rows = [(ids[r, :24][mask[r, :24]].tolist(), ids[r, 24:].tolist()) for r in range(3)]
    for row, (logprob, entropy) in enumerate(score_outputs(model, rows)):
        np.testing.assert_allclose(logprob, expected["greedy_token_logps"][row], atol=1e-4)
        np.testing.assert_allclose(entropy, expected["greedy_entropy_nats"][row], atol=1e-4)


def test_long_outputs_are_scored_in_parts(monkeypatch):
    """16 outputs of 32k tokens took 18 GiB beside a model of 1.5B parameters."""
    model, _ = load_pretrained(GOLDEN / "qwen3_tied_fp32", dtype="float32")
    outputs = [((1, 2), tuple(range(3, 3 + n))) for n in (7, 90, 20, 70)]
    whole = score_outputs(model, outputs)
    seen, pad = [], scoring.padded_rows

    def spy(*rows):
        seen.append(pad(*rows)[0].shape)
        return pad(*rows)

    monkeypatch.setattr(padding, "MOST_TOKENS", 128)
    monkeypatch.setattr(scoring, "padded_rows", spy)
    for mine, values in zip(score_outputs(model, outputs), whole, strict=True):
        np.testing.assert_allclose(mine, values, atol=1e-4)
    assert seen == [(1, 128), (1, 128), (2, 64)]


def test_a_last_batch_of_fewer_outputs_has_the_shape_of_the_others(monkeypatch):
    model, _ = load_pretrained(GOLDEN / "qwen3_tied_fp32", dtype="float32")
    outputs = [((1, 2), (3, 4, 5)), ((1, 2, 3), (4, 5))]
    seen, pad = [], scoring.padded_rows
    monkeypatch.setattr(scoring, "padded_rows", lambda *given: seen.append(given[1:]) or pad(*given))
    for mine, values in zip(
        score_outputs(model, outputs, rows=4), score_outputs(model, outputs), strict=True
    ):
        np.testing.assert_allclose(mine, values, atol=1e-4)
    assert seen == [(64, 4), (64, 2)]


def test_a_model_of_nans_has_no_scores():
    model, _ = load_pretrained(GOLDEN / "qwen3_tied_fp32", dtype="float32")
    model.final_norm[...] = model.final_norm[...] * np.nan
    with pytest.raises(UserError, match=r"output 0 of 1: .* NaN; check its weights"):
        score_outputs(model, [([1, 2], [3])])
