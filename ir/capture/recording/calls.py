"""One run of a module: its calls in order, and where every tensor among them came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

__all__ = ["META", "PLAIN_OUTPUTS", "Call", "GradMode", "Recording", "Ref"]

META = torch.device("meta")
"""The device of a run's tensors: they have shapes and no values."""
PLAIN_OUTPUTS = (torch.Tensor, int, float, str, type(None))
"""The types that a network may return, in any nest that PyTorch knows."""


class Ref(NamedTuple):
    """A tensor among the arguments of a call.

    It is result ``part`` of call ``source``, or a weight or input by name.
    """

    source: int | str
    part: int = 0


class Call(NamedTuple):
    """An ATen call with a `Ref` for each tensor, and dtype and shape of its results.

    ``several`` tells a list of results from one; None among the results is a result that the call
    did not give.
    """

    target: torch._ops.OpOverload[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[tuple[torch.dtype, tuple[int, ...]] | None, ...]
    several: bool
    module: str
    module_type: str
    file: str
    line: int


class GradMode(NamedTuple):
    """The module switched gradients on or off."""

    enabled: bool


@dataclass
class Recording:
    """One run: its calls in order, and what it returned (a `Ref` for each tensor)."""

    steps: list[Call | GradMode] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    spec: Any = None
    samplewise: bool = True
    """True if the module made only calls that treat every sample by itself, and looked at no size:
    at any batch size it makes the same calls, and the first dimension of every result is the batch.
    """
