"""Ahead-of-time checks: does the train step, or the tree search, compile for a TPU topology, and does it fit?"""

from caspo_jax.compile_check.chips import CHIPS, Chip, topology_devices
from caspo_jax.compile_check.programs import CatShape, Program, TrainShape, cat_program, train_program
from caspo_jax.compile_check.report import Check, check, table
from caspo_jax.compile_check.shapes import SHAPES, model_shape

__all__ = [
    "CHIPS",
    "SHAPES",
    "CatShape",
    "Check",
    "Chip",
    "Program",
    "TrainShape",
    "cat_program",
    "check",
    "model_shape",
    "table",
    "topology_devices",
    "train_program",
]
