"""Proof that a network in half precision still computes the network.

The tolerance is PyTorch's own error: a file is compared with the double-precision result, and may
be a few times as far from it as the same network in PyTorch's half precision is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.errors import VerificationError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.compare import tensor_leaves
from pruneopt.ir.graph import Graph

__all__ = ["apart", "check_half", "half_error"]

FACTOR = 4.0
"""How many times as far from the exact result as PyTorch's own half precision a file may be: both
round every value to 11 bits, but sum and fuse in other orders."""
ROUNDING = 2.0**-10
"""The least error allowed, relative to the largest output: one rounding of an input and one of an
output."""


CEILING = 0.05
"""The largest error allowed, whatever PyTorch's is: its own half precision may overflow as well."""


def half_error(
    graph: Graph, weights: Mapping[str, Tensor], found: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[float, float]:
    """Return how far outputs in half precision are from those in double precision, and how far they
    may be, both relative to the largest output.
    """
    with torch.no_grad():
        exact = tensor_leaves(build_module(graph, weights).double()(*_cast(inputs, torch.float64)))
        half = tensor_leaves(build_module(graph, weights).half()(*_cast(inputs, torch.float16)))
    return apart(found, exact), min(max(FACTOR * apart(half, exact), ROUNDING), CEILING)


def check_half(
    graph: Graph, weights: Mapping[str, Tensor], found: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[float, float]:
    """Return `half_error`; raise `VerificationError` where the outputs are too far off."""
    error, allowed = half_error(graph, weights, found, inputs)
    if not error <= allowed:
        raise VerificationError(
            f"in half precision {graph.name} is off by {error:.2g} of its largest output, more "
            f"than {allowed:.2g}: "
            "its numbers do not fit; nothing is delivered"
        )
    return error, allowed


def _cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def apart(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest difference of any output, relative to the largest number in that output;
    infinite for what is no number.
    """
    worst = 0.0
    for one, other in zip(found, exact, strict=True):
        if other.numel() and other.is_floating_point():
            size = float(other.double().abs().max())
            off = float((one.double() - other.double()).abs().max())
            worst = max(
                worst, off / size if size and math.isfinite(off) else 0.0 if not off else math.inf
            )
    return worst
