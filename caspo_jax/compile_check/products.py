"""Matrix products: how many floating-point operations an instruction of a compiled program does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from caspo_jax.compile_check.hlo import Computation, Instruction, Shape


def flops(computation: Computation, i: Instruction) -> float:
    """Floating-point operations of a matrix product, in bf16 passes; 0 for any other instruction."""
    if i.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (computation.shapes_of(name)[0] for name in i.operands[:2])
    if i.opcode == "dot":
        inner = np.prod([left.dims[d] for d in i.dims_attribute("lhs_contracting_dims")], dtype=float)
        products = i.shapes[0].elements * inner
    else:
        products = _convolution_products(i, left, right)
    return 2.0 * products * _passes(i, left, right)


def _passes(i: Instruction, left: Shape, right: Shape) -> int:
    """bf16 passes of a product."""
    if "f32" not in (left.dtype, right.dtype):
        return 1
    precision = i.attribute("operand_precision") or ""
    return 6 if "highest" in precision else 3 if "high" in precision else 1


def _convolution_products(i: Instruction, left: Shape, right: Shape) -> float:
    """Multiplications of a convolution, those with padding left out: the compiler writes products as convolutions."""
    labels = i.attribute("dim_labels") or ""
    _, kernel, output = re.split(r"_|->", labels)
    lhs = labels.split("_")[0]
    products = float(right.dims[kernel.index("i")])  # input features a group
    for label, size in zip(output, i.shapes[0].dims):
        if not label.isdigit():
            products *= size
    window = _window(i)
    for label in sorted(set(kernel) & set("0123456789")):
        options = window.get(int(label), {})
        products *= _valid_pairs(
            left.dims[lhs.index(label)],
            right.dims[kernel.index(label)],
            i.shapes[0].dims[output.index(label)],
            options,
        )
    return products


def _window(i: Instruction) -> dict[int, dict[str, int]]:
    """window={size=2x3 pad=0_1x0_0 stride=... lhs_dilate=... rhs_dilate=...} by spatial dimension."""
    found: dict[int, dict[str, int]] = {}
    for key, text in re.findall(r"(\w+)=([\w\-]+)", i.attribute("window") or ""):
        for dimension, part in enumerate(text.split("x")):
            found.setdefault(dimension, {})[key] = int(part.split("_")[0])
    return found


def _valid_pairs(size: int, kernel: int, output: int, options: Mapping[str, int]) -> int:
    """Pairs (output position, kernel position) that meet an input element."""
    dilate = options.get("lhs_dilate", 1)
    position = (
        np.arange(output)[:, None] * options.get("stride", 1)
        - options.get("pad", 0)
        + np.arange(kernel) * options.get("rhs_dilate", 1)
    )
    inside = (position >= 0) & (position < (size - 1) * dilate + 1) & (position % dilate == 0)
    return int(inside.sum())
