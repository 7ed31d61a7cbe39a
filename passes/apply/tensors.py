"""Tensors of a user's module and its optimisers, cut to a plan; each stays the same object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.analysis.channels.units import Slot
from pruneopt.passes.apply.undo import Undo

__all__ = ["Owned", "cut_optimizer", "cut_tensors", "new_biases", "owned_tensors"]


@dataclass(frozen=True, eq=False)
class Owned:
    """A tensor of the user's module that the graph has too, and where channels lie in it."""

    name: str
    tensor: Tensor
    slots: list[Slot]

    def loses(self, kept: np.ndarray) -> bool:
        """Return whether the tensor gets smaller."""
        return not all(np.append(kept, True)[slot.units].all() for slot in self.slots)


def owned_tensors(model: nn.Module, coupling: Coupling) -> list[Owned]:
    """Return the module's tensors, in the graph's order, each object once.

    Raises:
        UserError: the module lacks one, or has it in another shape.
    """
    own: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    own.update(model.named_parameters(remove_duplicate=False))
    graph = coupling.graph
    found: dict[int, Owned] = {}
    for name in (*graph.params, *graph.aliases):
        value = graph.params[graph.aliases.get(name, name)]
        tensor = own.get(name)
        if tensor is None and value.kind == "constant":
            tensor = plain_tensor(model, name)
            if tensor is None:  # written in the code, as torch.arange(8) is
                continue
        if tensor is None:
            raise UserError(
                f"{type(model).__name__} has no {name}, which the pruned network has: give the "
                "module that was captured"
                " (inside a wrapper: wrapper.module)"
            )
        if tuple(tensor.shape) != value.type.shape():
            raise UserError(
                f"{name} of {type(model).__name__} has the shape {list(tensor.shape)}, and "
                f"{list(value.type.shape())} "
                "was pruned: give the module as it was captured (it may have been cut already)"
            )
        # A shared tensor has several names, and is cut once.
        found.setdefault(id(tensor), Owned(value.name, tensor, coupling.slots_of(value)))
    return list(found.values())


def plain_tensor(model: nn.Module, name: str) -> Tensor | None:
    """Return a tensor that is an attribute of a module, neither a parameter nor a buffer."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def cut_tensors(
    owned: Iterable[Owned],
    kept: np.ndarray,
    given: Mapping[str, Tensor] | None,
    masks: Mapping[str, Tensor],
    undo: Undo,
) -> None:
    """Cut every tensor and its gradient to the kept units.

    ``given``: what the tensors hold from now on, by name; None: what of theirs is left. Weights
    that ``masks`` hold at zero are zero.
    """
    for item in owned:
        old, grad = item.tensor.detach(), item.tensor.grad
        small = gather_kept(old, item.slots, kept)
        new = (
            small.clone()
            if given is None
            else given[item.name].detach().to(old.device, old.dtype, copy=True)
        )
        if item.name in masks:
            new = new * masks[item.name].to(new.device)
        small_grad = None if grad is None else _laid_out(gather_kept(grad, item.slots, kept), old)
        undo.set_data(item.tensor, _laid_out(new, old), small_grad)


def _laid_out(new: Tensor, old: Tensor) -> Tensor:
    """Return ``new``, in memory as ``old`` is, where that is channels last."""
    for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if (
            old.dim() == rank
            and not old.is_contiguous()
            and old.is_contiguous(memory_format=layout)
        ):
            return new.contiguous(memory_format=layout)
    return new.contiguous()


def new_biases(
    model: nn.Module,
    names: Iterable[str],
    given: Mapping[str, Tensor],
    optimizers: Iterable[Optimizer],
    undo: Undo,
) -> list[Owned]:
    """Give layers without a bias one, where a repair needed it; it trains as their weight does.

    Raises:
        UserError: a name that is no bias of a layer which could have one.
    """
    made = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = dict(model.named_modules(remove_duplicate=False)).get(path)
        weight = None if owner is None else owner._parameters.get("weight")
        if (
            owner is None
            or leaf != "bias"
            or weight is None
            or owner._parameters.get("bias", weight) is not None
        ):
            raise UserError(
                f"the pruned network has {name}, for which {type(model).__name__} has no place: "
                "use result.module, or "
                "apply_(model, weights='model'), which leaves out what was done to the weights "
                "after the cut"
            )
        bias = nn.Parameter(
            given[name].detach().to(weight.device, weight.dtype, copy=True), weight.requires_grad
        )
        undo.set_attr(owner, "bias", bias)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            # Tensors compare element by element: ``in`` would not ask for this object.
            if any(param is weight for param in group["params"]):
                undo.add(group["params"].pop)
                group["params"].append(bias)
        made.append(Owned(name, bias, []))
    return made


# Optimizers


def cut_optimizer(
    optimizer: Optimizer, owned: Iterable[Owned], kept: np.ndarray, undo: Undo
) -> None:
    """Cut an optimiser's state (moments, momentum), before the parameters are cut.

    Raises:
        UserError: it remembers something that has not a parameter's shape, so that nothing says how
            to cut it.
    """
    mine = {id(item.tensor): item for item in owned}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if not any(id(param) in mine for param in params):
        raise UserError(
            f"{type(optimizer).__name__} trains no parameter of the module: give the optimizer "
            "that was made for it"
        )
    for param in params:
        state = optimizer.state.get(param, {})
        item = mine.get(id(param))
        for key, value in state.items():
            # Every optimiser names its state differently; the shape says what goes by channels.
            if isinstance(value, Tensor) and value.shape == param.shape:
                if item is not None and item.loses(kept):
                    _set_state(state, key, gather_kept(value, item.slots, kept), undo)
            elif not isinstance(value, None | bool | int | float | str) and not _is_one(value):
                what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(
                    f"{type(optimizer).__name__} remembers {key} ({what}) of a parameter of the "
                    "shape "
                    f"{list(param.shape)}, which cannot be cut along with it: call apply_ without "
                    "the optimizer, and "
                    "make a new one for the smaller module"
                )


def _is_one(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _set_state(state: dict[str, Any], key: str, value: Tensor, undo: Undo) -> None:
    before = state[key]
    undo.add(lambda: state.__setitem__(key, before))
    state[key] = value
