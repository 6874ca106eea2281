"""The plan that a configuration asks for."""

from __future__ import annotations

from caspo_jax.training.base_plan import Plan
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.row_plan import RowPlan
from caspo_jax.training.tree_plan import TreePlan


def make_plan(store: RowStore, config: TrainConfig, ways: int = 1) -> Plan:
    """The plan of `config.pack`; a micro-batch's rows are a multiple of `ways`, which the mesh splits them into.

    Raises:
      UserError: nothing to train on.
    """
    return TreePlan(store, config, ways) if config.pack == "trees" else RowPlan(store, config, ways)
