"""Ahead-of-time checks: does the train step, or the tree search, compile for TPUs or GPUs that are not there, and does it fit?

`chips` names the devices (`gpus` what a GPU's compiler must know), `shapes` the models; `programs` lowers the library's own programs from
shapes alone; `report.check` compiles one and puts its figures together. They are read off the compiled program's text: `hlo` parses it, and
`cost` walks over it, with `loops` (trips), `products` (FLOPs), `traffic` (HBM bytes) and `collectives` (bytes over the links).
"""

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
