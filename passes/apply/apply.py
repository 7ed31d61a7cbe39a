"""Slim a user's own module in place, or leave it as it was: fewer channels in the same objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.apply.attributes import attribute_changes
from pruneopt.passes.apply.check import Rehearsal, check_same
from pruneopt.passes.apply.diagnosis import CutModule
from pruneopt.passes.apply.tensors import cut_optimizer, cut_tensors, new_biases, owned_tensors
from pruneopt.passes.apply.undo import transaction
from pruneopt.passes.graph_rewrites.slice import slice_graph

__all__ = ["Source", "apply_to"]

M = TypeVar("M", bound=nn.Module)
Source = Literal["result", "model"]


def apply_to(
    model: M,
    pruned: Graph,
    coupling: Coupling,
    plan: Plan,
    masks: Mapping[str, Tensor],
    dropped: Collection[str],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    weights: Source = "result",
    inputs: Sequence[Tensor] | None = None,
    forward: Callable[..., Any] | None = None,
) -> M:
    """Do `Result.apply_`: ``pruned`` is the network that the plan left, ``dropped`` the blocks that
    it has no more."""
    if weights not in ("result", "model"):
        raise UserError(f"weights={weights!r} must be 'result' or 'model'")
    if dropped:
        raise UserError(
            f"the block {next(iter(dropped))} was dropped, and {type(model).__name__} still runs "
            "it: use result.module"
        )
    _check_class(model)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or [])
    kept = coupling.kept_units(plan)
    owned = owned_tensors(model, coupling)
    cut = slice_graph(coupling.graph, coupling, plan)
    graph = pruned if weights == "result" else cut
    cuts = frozenset(group.name for group in coupling.free if not kept[group.units].all())
    cut_module = CutModule(model, forward, owned, graph, coupling, cut, cuts)
    rehearsal = Rehearsal(cut_module, inputs)
    with transaction() as undo, torch.no_grad():
        for item in optimizers:
            cut_optimizer(item, owned, kept, undo)
        cut_tensors(owned, kept, graph.weights if weights == "result" else None, masks, undo)
        known = {item.name for item in owned}
        added = [
            name
            for name, value in graph.params.items()
            if value.kind == "param" and name not in known
        ]
        owned.extend(new_biases(model, added, graph.weights, optimizers, undo))
        for change in list(attribute_changes(model, coupling, cut)):
            undo.set_attr(change.module, change.name, change.value)
        check_same(cut_module, inputs)
        rehearsal.repeat()
    return model


def _check_class(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{name} is scripted, and cannot change its sizes: give the module that it was made "
            "from"
        )
    if name in ("DistributedDataParallel", "FullyShardedDataParallel"):
        raise UserError(
            f"{name} has noted the sizes of the parameters: give the module inside it, and wrap it "
            "again"
        )
