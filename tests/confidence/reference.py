"""Float64 NumPy references, written from the definitions and not from the library."""

from __future__ import annotations

import numpy as np


def log_softmax(logits):
    x = np.asarray(logits, dtype=np.float64)
    z = x - x.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def entropy(logits):
    logp = log_softmax(logits)
    p = np.exp(logp)
    return -np.where(p > 0, p * np.where(p > 0, logp, 0.0), 0.0).sum(axis=-1)


def stats_row(logits, token):
    """One row [V] -> every TokenStats field."""
    x = np.asarray(logits, dtype=np.float64)
    logp = log_softmax(x)
    order = sorted(range(len(x)), key=lambda v: (-x[v], v))
    finite = [v for v in order if np.isfinite(x[v])]
    support = len(finite)
    second = order[1] if len(order) > 1 else -1
    return {
        "entropy": entropy(x),
        "logprob": logp[token],
        "top1_id": order[0],
        "top2_id": second,
        "top1_logprob": logp[order[0]],
        "top2_logprob": logp[second] if second >= 0 else -np.inf,
        "mean_top5_logprob": np.mean(logp[finite[:5]]),
        "mean_top20_logprob": np.mean(logp[finite[:20]]),
        "uniform_kl": np.mean(np.log(1.0 / support) - logp[finite]),
        "logsumexp": x.max() + np.log(np.exp(x - x.max()).sum()),
    }


def step_confidence(name, rows, vocab):
    """A list of stats_row dicts (the tokens of one step) -> the named confidence."""
    get = lambda field: np.array([row[field] for row in rows])  # noqa: E731
    h = get("entropy")
    worst = np.sort(h)[::-1][: int(np.ceil(len(h) / 10))]
    return {
        "entropy": lambda: np.exp(-h.mean()),
        "max_entropy": lambda: np.exp(-h.max()),
        "tail_entropy": lambda: np.exp(-worst.mean()),
        "first_token": lambda: np.exp(-h[0]),
        "normalised": lambda: 1 - h.mean() / np.log(vocab),
        "mean_logprob": lambda: np.exp(get("logprob").mean()),
        "sum_logprob": lambda: np.exp(get("logprob").sum()),
        "max_prob": lambda: np.exp(get("top1_logprob")).mean(),
        "margin": lambda: (np.exp(get("top1_logprob")) - np.exp(get("top2_logprob"))).mean(),
        "deepconf": lambda: -get("mean_top20_logprob").mean(),
        "self_certainty": lambda: get("uniform_kl").mean(),
    }[name]()
