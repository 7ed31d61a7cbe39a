"""The module behind a graph, as far as capture has to know it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["ModuleTable"]


@dataclass
class ModuleTable:
    """The live modules behind a capture: their classes, tensors, and which of them are frozen."""

    root: nn.Module
    frozen: frozenset[str]

    def module(self, path: str) -> nn.Module | None:
        try:
            return self.root.get_submodule(path)
        except AttributeError:
            return None

    def canonical_names(self) -> dict[str, str]:
        """Return every parameter and buffer name, with the first name of the same tensor."""
        names: dict[str, str] = {}
        first: dict[int, str] = {}
        tensors: list[tuple[str, torch.Tensor]] = [
            *self.root.named_parameters(remove_duplicate=False),
            *self.root.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in tensors:
            names[name] = first.setdefault(id(tensor), name)
        return names
