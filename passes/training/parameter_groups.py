"""Which parameters decay: the groups that an optimiser is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn import Parameter

from pruneopt.errors import UserError
from pruneopt.passes.training.recipe import Recipe

__all__ = ["Decays", "decayed_parameters", "parameter_groups"]

Decays = Callable[[str, Parameter], bool]
"""Whether a parameter, by its name, is for the weight decay."""


def decayed_parameters(module: nn.Module, recipe: Recipe, decays: Decays | None) -> dict[str, bool]:
    """Return whether each parameter that is trained decays, by name: both `recipe.decay_norm` and
    ``decays`` must agree.

    Raises:
        UserError: nothing is trained.
    """
    found = {
        name: (recipe.decay_norm or parameter.ndim > 1)
        and (decays is None or decays(name, parameter))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    if not found:
        raise UserError(
            "the network has no parameter that requires gradients: there is nothing to train"
        )
    return found


def parameter_groups(
    module: nn.Module, recipe: Recipe, decayed: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """Return one group of what decays and one of what does not, without empty ones."""
    named = dict(module.named_parameters())
    groups = [
        {
            "params": [named[name] for name, flag in decayed.items() if flag],
            "weight_decay": recipe.weight_decay,
        },
        {
            "params": [named[name] for name, flag in decayed.items() if not flag],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]
