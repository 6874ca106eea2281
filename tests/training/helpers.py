"""A tiny decoder, random pair batches, and the loss written again in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.models import Decoder
from caspo_jax.training import LossConfig
from caspo_jax.types import Pair, PairBatch, StepRows
from tests.shapes import small_shape

VOCAB = 13


class Toy(nnx.Module):
    """A causal model that compiles in no time: h_t = tanh(e_t + mean_{s <= t} e_s M), tied head; s among t's ancestors."""

    def __init__(self, seed=0, vocab=VOCAB, width=8, scale=0.7, dtype=jnp.float32):
        rng = np.random.default_rng(seed)
        self.embed = nnx.Param(jnp.asarray(scale * rng.normal(size=(vocab, width)), dtype))
        self.mix = nnx.Param(jnp.asarray(scale * rng.normal(size=(width, width)), dtype))

    def hidden_states(self, token_ids, positions=None, mask=None, subtree_end=None):
        mask = jnp.ones(token_ids.shape) if mask is None else mask
        embedded = self.embed[...][token_ids] * mask[..., None]
        columns = jnp.arange(token_ids.shape[1])
        seen = (columns <= columns[:, None]) & (mask[:, None] > 0)
        if subtree_end is not None:
            seen &= columns[:, None] < subtree_end[:, None]
        mean = (seen @ embedded) / jnp.maximum(jnp.sum(seen, axis=2), 1)[..., None]
        return jnp.tanh(embedded + mean.astype(embedded.dtype) @ self.mix[...])

    def unembedding(self):
        return self.embed[...]


class Scaled(Toy):
    """Its scale is in no array."""

    def __init__(self, by):
        super().__init__()
        self.by, self.parts, self.kind = by, (jnp.tanh, None), nnx.Param

    def hidden_states(self, *args, **options):
        return self.by * super().hidden_states(*args, **options)


def tiny_decoder(seed=0, scale=0.3):
    return Decoder(small_shape(vocab_size=VOCAB, initializer_range=scale), rngs=nnx.Rngs(seed))


def random_rows(rng, lengths, width, longest_step=4):
    """Right-padded rows of the given lengths; each row's last 1..longest_step tokens are its step."""
    count = len(lengths)
    token_ids = rng.integers(0, VOCAB, (count, width)).astype(np.int32)
    columns = np.arange(width)
    mask = columns < np.asarray(lengths)[:, None]
    starts = np.asarray(lengths) - rng.integers(1, longest_step + 1, count)
    return StepRows(token_ids, mask, mask & (columns >= starts[:, None]))


def random_batch(seed=0, pairs=3, width=12, verified=0, weights=None):
    rng = np.random.default_rng(seed)

    def lengths(n):
        return rng.integers(6, width + 1, n)

    return PairBatch(
        chosen=random_rows(rng, lengths(pairs), width),
        rejected=random_rows(rng, lengths(pairs), width),
        weight=np.asarray(weights if weights is not None else np.ones(pairs), np.float32),
        reference_chosen=rng.normal(-6, 1, pairs).astype(np.float32),
        reference_rejected=rng.normal(-6, 1, pairs).astype(np.float32),
        verified=random_rows(rng, lengths(verified), width) if verified else None,
    )


def words(rng, low, high):
    return tuple(int(i) for i in rng.integers(1, 4, rng.integers(low, high)))


def make_data(seed, pairs=7, verified=6):
    """Pairs and verified rows of few questions over a small alphabet, so that they share beginnings at any depth."""
    rng = np.random.default_rng(seed)
    prompts = [words(rng, 2, 6) for _ in range(3)]
    made = []
    for i in range(pairs):
        prompt, prefix = prompts[rng.integers(3)], words(rng, 0, 5)
        chosen, rejected = words(rng, 1, 5), words(rng, 1, 5)
        made.append(
            Pair(
                id=str(i),
                kind="wrong",
                prompt="",
                prefix="",
                chosen="",
                rejected="",
                prompt_ids=prompt,
                prefix_ids=prefix,
                chosen_ids=chosen,
                rejected_ids=rejected,
                ends_trace=(False, False),
                weight=float(rng.uniform(0.5, 2)),
            )
        )
    return made, [(prompts[rng.integers(3)], words(rng, 1, 8)) for _ in range(verified)]


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def reference_sums(model: Toy, rows):
    """[R] log-prob, entropy and token sums of each row's step: NumPy float64, one unpadded row at a time."""
    embed, mix = (np.asarray(p[...], np.float64) for p in (model.embed, model.mix))
    sums = []
    for ids, mask, step in zip(*map(np.asarray, (rows.token_ids, rows.mask, rows.step_mask))):
        ids, step = ids[mask], step[mask]
        states = embed[ids]
        means = np.cumsum(states, axis=0) / np.arange(1, len(ids) + 1)[:, None]
        logits = (np.tanh(states + means @ mix) @ embed.T)[:-1]
        logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        entropy = -np.sum(np.exp(logps) * logps, axis=-1)
        drawn = np.take_along_axis(logps, ids[1:, None], axis=-1)[:, 0]
        sums.append((np.sum(drawn[step[1:]]), np.sum(entropy[step[1:]]), np.sum(step[1:])))
    return np.array(sums).T


def reference_loss(model, batch, config: LossConfig):
    """docs/design.md, section 3, option by option."""
    weight = np.asarray(batch.weight, np.float64)
    chosen, _, chosen_tokens = reference_sums(model, batch.chosen)
    rejected, _, rejected_tokens = reference_sums(model, batch.rejected)
    total = 0.0
    if config.loss in ("sigmoid", "ipo"):
        ratio_chosen, ratio_rejected = chosen - batch.reference_chosen, rejected - batch.reference_rejected
        if config.length_normalised:
            ratio_chosen, ratio_rejected = ratio_chosen / chosen_tokens, ratio_rejected / rejected_tokens
        h = ratio_chosen - ratio_rejected - config.dpop_lambda * np.maximum(0, -ratio_chosen)
        if config.loss == "ipo":
            losses = (h - 1 / (2 * config.beta)) ** 2
        else:
            losses = (1 - config.label_smoothing) * np.log1p(np.exp(-config.beta * h))
            losses += config.label_smoothing * np.log1p(np.exp(config.beta * h))
        total += np.sum(weight * losses) / np.sum(weight)
    alpha = config.nll_alpha if config.loss in ("sigmoid", "ipo") else 1.0
    if alpha:
        if config.loss == "rft" or (config.loss != "sft" and config.nll_on == "verified"):
            logprob, _, tokens = reference_sums(model, batch.verified)
            row_weight = (tokens > 0).astype(float)
        else:
            logprob, tokens, row_weight = chosen, chosen_tokens, weight
        if config.nll_average == "token":
            total += alpha * np.sum(row_weight * -logprob) / np.sum(row_weight * tokens)
        else:
            total += alpha * np.sum(row_weight * -logprob / np.maximum(tokens, 1)) / np.sum(row_weight)
    return total
