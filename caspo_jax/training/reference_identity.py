"""What tells one reference from another: its weights, and what shapes its log-probs without being in any array."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from caspo_jax.models.lora import has_adapters
from caspo_jax.training.data import RowStore
from caspo_jax.training.digests import weights_digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)


def reference_identity(model: Any, digest: str | None = None) -> dict[str, Any]:
    """Of a model all that its log-probs depend on, as plain JSON values, the same in every process and on any mesh.

    Args:
      model: the reference. One without a `config` is told by its class and its attributes.
      digest: its `weights_digest`, if that is known; default: taken here.
    """
    identity: dict[str, Any] = {
        "reference": digest or weights_digest(model),
        "config": repr(getattr(model, "config", None)),
        "dtype": str(getattr(model, "dtype", None)),
    }
    if getattr(model, "config", None) is None:
        identity["attributes"] = hashlib.sha256(repr(_told(model, ())).encode()).hexdigest()
    if has_adapters(model):  # its scale is in no array
        identity["lora"] = repr(model.lora)
    return identity


def references_digest(model: Any, digest: str | None, store: RowStore) -> str:
    """SHA-256 of where a run's reference log-probs come from: those given, and the model that computes the others.

    Args:
      model: the reference.
      digest: its `weights_digest`, if that is known; default: taken here, where it counts.
      store: the run's pairs, before anything is filled in.
    """
    columns = np.stack([store.reference_chosen, store.reference_rejected])
    known = ~np.isnan(columns)
    came: dict[str, Any] = {}
    if known.any():
        came["given"] = hashlib.sha256(np.where(known, columns, np.float32(np.nan)).tobytes()).hexdigest()
    if not known.all():
        came["model"] = reference_identity(model, digest)
    return hashlib.sha256(json.dumps(came, sort_keys=True).encode()).hexdigest()


def _told(value: Any, above: tuple[int, ...]) -> Any:
    """A value in words without addresses; `above` are the objects that it is an attribute of."""
    if isinstance(value, (nnx.Variable, jax.Array, Mesh, Sharding)) or id(value) in above:
        return type(value).__name__  # the weights have a digest of their own; where they lie does not matter
    above = (*above, id(value))
    if isinstance(value, enum.Enum):
        return (_named(type(value)), value.name)
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, functools.partial):
        return ("partial", *(_told(part, above) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, (set, frozenset)):
        return ("set", sorted(repr(_told(item, above)) for item in value))
    if isinstance(value, (list, tuple)):
        return (_named(type(value)), [_told(item, above) for item in value])
    if isinstance(value, Mapping):
        return ("mapping", sorted((repr(_told(k, above)), _told(v, above)) for k, v in value.items()))
    if hasattr(value, "__qualname__"):  # classes and functions
        return _named(value)
    if hasattr(value, "__dict__"):
        told = {name: _told(v, above) for name, v in vars(value).items() if not name.startswith("_pytree__")}
        return (_named(type(value)), sorted(told.items()))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
