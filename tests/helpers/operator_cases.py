"""A network around an operator, and what its coupling must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

IMAGE = (2, 3, 8, 8)


@dataclass(frozen=True)
class Case:
    """A network, the groups that must be free and frozen, and the shapes of its inputs.

    Attributes:
        net: makes the network.
        free: width of every group that may lose channels, by its name.
        frozen: a part of the reason, for groups that must not.
        shapes: of the inputs.
        noted: ops that run over channels, so that their result changes by construction; None: not
            looked at.
    """

    net: Callable[[], nn.Module]
    free: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    noted: int | None = None


def check_case(case: Case, prove: Callable[..., Any]) -> None:
    """Prune the network with proof (see the fixture ``prove``), and compare its groups."""
    torch.manual_seed(0)
    coupling = prove(case.net(), *[torch.randn(shape) for shape in case.shapes])
    assert {group.name: group.width for group in coupling.free} == case.free
    frozen = {group.name: group.frozen or "" for group in coupling.groups if group.name != "out"}
    for group, reason in case.frozen.items():
        assert reason in frozen[group]
    assert case.noted is None or len(coupling.notes) == case.noted
