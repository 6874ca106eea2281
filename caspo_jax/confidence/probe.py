"""A linear probe on hidden states: the trained estimator of a step's confidence."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError

WEIGHTS, SETTINGS = "probe.safetensors", "probe.json"
_VERSION = 1
_TENSORS = ("weight", "mean", "scale")
_TOLERANCE = 1e-5
# Features are converted to float64 so many rows or columns at a time: those of long thoughts are gigabytes in
# float32.
_ROWS, _COLUMNS = 1024, 256


@dataclasses.dataclass(frozen=True)
class Probe:
    """P(step is right) = sigmoid(w . (x - mean) / scale + b) of step features x [F]."""

    weight: np.ndarray  # [F] float32
    bias: float
    mean: np.ndarray  # [F] float32, of the training features
    scale: np.ndarray  # [F] float32, their standard deviation, 1 where it is 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def predict(self, features: Any) -> np.ndarray:
        """Confidence [n] of features [n, F].

        Raises:
          UserError: features of another width.
        """
        x = np.asarray(features)
        if x.ndim != 2 or x.shape[1] != self.weight.size:
            raise UserError(f"features of shape {x.shape}: this probe reads [n, {self.weight.size}]")
        weight = self.weight.astype(np.float64)
        logit = np.empty(len(x))
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            logit[rows] = ((x[rows].astype(np.float64) - self.mean) / self.scale) @ weight + self.bias
        return np.exp(-np.logaddexp(0.0, -logit))


def fit_probe(
    features: Any,
    right: Any,
    learn: Any = None,
    *,
    l2: float = 1.0,
    max_iterations: int = 500,
    settings: Mapping[str, Any] | None = None,
) -> Probe:
    """Logistic regression on standardised features.

    Minimises sum_n (log(1 + e^{z_n}) - y_n z_n) + l2 |w|^2 / 2 over the examples to learn from, with z = w .
    x + b, x standardised and no penalty on b, by L-BFGS under jit.

    Args:
      features: [n, F].
      right: [n] 0/1.
      learn: [n] bool, the examples to learn from (default all). All folds of a data set then share one
        compiled program.
      l2: penalty on the standardised weights.
      max_iterations: of L-BFGS.
      settings: what to store beside the weights (which states, which model).

    Raises:
      UserError: shapes that do not match, fewer than two examples, one verdict only, l2 < 0, features not finite.
    """
    x, y = np.asarray(features, np.float32), np.asarray(right, np.float32)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise UserError(f"features of shape {x.shape} and verdicts of shape {y.shape}: give [n, F] and [n]")
    used = np.ones(y.size, bool) if learn is None else np.asarray(learn, bool)
    if not np.isin(y[used], (0.0, 1.0)).all() or len(np.unique(y[used])) < 2:
        raise UserError("a probe needs steps of both verdicts, 0 and 1")
    columns = [slice(start, start + _COLUMNS) for start in range(0, x.shape[1], _COLUMNS)]
    if not all(np.isfinite(x[:, part]).all() for part in columns):
        raise UserError("features hold NaN or infinities; leave those steps out")
    if l2 < 0:
        raise UserError(f"l2={l2}: give 0 or more")
    mean, spread = np.empty((2, x.shape[1]), np.float32)
    for part in columns:
        learned = x[used, part]
        mean[part] = learned.mean(axis=0, dtype=np.float64)
        spread[part] = learned.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 0, spread, 1.0).astype(np.float32)
    standard = x - mean
    standard /= scale
    target = np.where(used, y, 0.0).astype(np.float32)
    weight, bias = _fit(standard, target, used.astype(np.float32), jnp.float32(l2), max_iterations)
    return Probe(np.asarray(weight), float(bias), mean, scale, dict(settings or {}))


@functools.partial(jax.jit, static_argnames="max_iterations")
def _fit(
    x: jax.Array, y: jax.Array, learn: jax.Array, l2: jax.Array, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
    import optax

    def loss(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
        weight, bias = parameters
        z = jnp.dot(x, weight, precision="highest") + bias
        total = jnp.sum(learn * (jnp.logaddexp(0.0, z) - y * z)) + 0.5 * l2 * jnp.sum(weight**2)
        return total / jnp.sum(learn)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)
    start = (jnp.zeros(x.shape[1]), jnp.float32(0.0))

    def unfinished(carry: Any) -> jax.Array:
        _, _, iteration, gradient = carry
        return (iteration < max_iterations) & (gradient > _TOLERANCE)

    def step(carry: Any) -> Any:
        parameters, state, iteration, _ = carry
        value, gradient = value_and_grad(parameters, state=state)
        updates, state = optimizer.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(parameters, updates), state, iteration + 1, optax.tree.norm(gradient)

    first = (start, optimizer.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(unfinished, step, first)[0]


def cross_fitted_probe(
    features: Any,
    right: Any,
    groups: Sequence[Hashable],
    *,
    folds: int = 5,
    l2: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Confidence [n] of every step, from a probe that has seen no step of its question.

    Args:
      features: [n, F].
      right: [n] 0/1, NaN where the verdict is unknown: predicted, never learned from.
      groups: [n] question ids; a fold holds whole questions.
      folds: at most the number of questions is used.
      l2: penalty on the weights.
      seed: of the assignment of questions to folds.

    Returns:
      [n] float64; NaN in a fold whose training part has one verdict only.

    Raises:
      UserError: fewer than two questions or folds.
    """
    x, y = np.asarray(features, np.float32), np.asarray(right, np.float64)
    names = sorted(set(groups), key=repr)
    if len(names) < 2 or folds < 2:
        raise UserError(
            f"a probe split by question needs 2 questions and 2 folds, got {len(names)} and {folds}"
        )
    assigned = np.random.default_rng(seed).permutation(len(names)) % min(folds, len(names))
    fold_of = dict(zip(names, assigned))
    fold = np.array([fold_of[group] for group in groups])
    found = np.full(y.size, np.nan)
    for k in range(min(folds, len(names))):
        held_out = fold == k
        learn = ~held_out & ~np.isnan(y)
        if held_out.any() and len(np.unique(y[learn])) == 2:
            found[held_out] = fit_probe(x, y, learn, l2=l2).predict(x[held_out])
    return found


def save_probe(probe: Probe, folder: str | Path) -> None:
    """Write `probe.safetensors` and `probe.json`, the latter last: a folder with it is whole. One process writes."""
    from caspo_jax.store import write_json, write_tensors

    folder = Path(folder)
    write_tensors(folder / WEIGHTS, {name: getattr(probe, name) for name in _TENSORS})
    write_json(folder / SETTINGS, {"version": _VERSION, "bias": probe.bias, "settings": dict(probe.settings)})


def load_probe(folder: str | Path) -> Probe:
    """Read a probe that `save_probe` wrote.

    Raises:
      UserError: a file that is missing, unreadable or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        described = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / WEIGHTS))
        bias = float(described["bias"])
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no probe here ({Path(str(error.filename)).name} is missing)") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: unreadable probe ({error})") from error
    if described.get("version") != _VERSION:
        raise UserError(
            f"{folder}: probe version {described.get('version')!r}, this library reads {_VERSION}"
        )
    shapes = {name: tensors[name].shape for name in _TENSORS if name in tensors}
    if len(shapes) < len(_TENSORS) or len(set(shapes.values())) != 1 or len(shapes["weight"]) != 1:
        raise UserError(f"{folder / WEIGHTS}: expected {', '.join(_TENSORS)} of one length, found {shapes}")
    return Probe(tensors["weight"], bias, tensors["mean"], tensors["scale"], described.get("settings", {}))
