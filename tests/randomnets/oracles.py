"""Two references that share no code with `verify_pruned` and never run our graph: the drawn module
itself.

`zeroed`: the module at full size, with the elements of its weights that read removed channels at
zero. `smaller`: the module's own Python with the sliced weights put into it, as a user would slim
it by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from randomnets.network import Network

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


DIRECTIONS = ("_v", "original1")
"""How the names of a weight norm's directions end."""


def zeroed(model: Network, coupling: Coupling, plan: Plan) -> Network | None:
    """The module that reads removed channels as zeros; None where that is not the pruned function:
    a statistic runs over removed channels, or activations are multiplied with each other.
    """
    removed = [g.name for g in coupling.groups if g.name in plan and len(plan[g.name]) < g.width]
    noted = {name for note in coupling.notes for name in note.groups}
    if noted & set(removed) or any(step.made.product for step in model.plan.steps):
        return None
    # The last is the unit -1 of no channel.
    gone = np.zeros(len(coupling.unit_group) + 1, dtype=bool)
    for group in coupling.groups:
        keep = np.asarray(plan.get(group.name, np.arange(group.width)))
        gone[np.delete(group.units, keep)] = True
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        for own, tensor in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            value = coupling.graph.params.get(f"{name}.{own}" if name else own)
            for slot in coupling.slots_of(value) if value is not None else ():
                if _may_be_zero(own, tensor, slot.axes):
                    mask = torch.from_numpy(gone[slot.units])
                    tensor.data.masked_fill_(mask.expand(tensor.shape), 0)
        _undivided(module)
    return twin


def _undivided(module: nn.Module) -> None:
    """Give a direction of a weight norm that became zero as a whole the length zero instead: 0 / 0
    would spread."""
    for name, direction in module.named_parameters(recurse=False):
        if name.endswith(DIRECTIONS):
            length = module.get_parameter(
                name.replace("original1", "original0").replace("_v", "_g")
            )
            axis = next((axis for axis, size in enumerate(length.shape) if size > 1), 0)
            gone = (direction.transpose(0, axis).flatten(1) == 0).all(1).nonzero().flatten()
            direction.data.index_fill_(axis, gone, 1.0)
            length.data.index_fill_(axis, gone, 0.0)


def _may_be_zero(name: str, tensor: Tensor, axes: tuple[int, ...]) -> bool:
    """Return whether the removed elements of a parameter may be zero: those that are read must,
    those that make channels may (nobody reads these), but vectors (a scale before a norm) and
    directions of a weight norm (0 / 0) are left alone.
    """
    return tensor.dim() > 1 and (axes[-1] == 1 or not name.endswith(DIRECTIONS))


def smaller(
    model: Network, weights: Mapping[str, Tensor], *, whole_groups: bool = False
) -> Network | None:
    """The module with its weights replaced by sliced ones; None where its Python spells out
    sizes."""
    if any(step.made.sized for step in model.plan.steps):
        return None
    names = {
        id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    twins: dict[str, Tensor] = {}
    twin = copy.deepcopy(model)
    for mine, theirs in zip(model.modules(), twin.modules(), strict=True):
        for table, new in (
            (mine._parameters, theirs._parameters),
            (mine._buffers, theirs._buffers),
        ):
            for own, tensor in table.items():
                name = names.get(id(tensor), "")
                if name in weights:
                    made = weights[name].clone()
                    fresh = (
                        nn.Parameter(made, made.is_floating_point())
                        if table is mine._parameters
                        else made
                    )
                    new[own] = twins.setdefault(name, fresh)  # type: ignore[assignment]
        _refresh(mine, theirs, whole_groups)
    return twin


def _group_for_each_weight(layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
    """Inputs and outputs of a group may go, or whole groups: only the input tells which did."""
    layer.groups = inputs[0].shape[1] // layer.weight.shape[1]


def _refresh(old: nn.Module, new: nn.Module, whole_groups: bool) -> None:
    """Bring the sizes that a layer of torch remembers into line with its weights."""
    if isinstance(old, TRANSPOSED) and isinstance(new, TRANSPOSED):
        if old.groups == old.in_channels or (whole_groups and old.groups > 1):
            new.groups = new.weight.shape[0] * old.groups // old.in_channels
    elif isinstance(old, CONVOLUTIONS) and isinstance(new, CONVOLUTIONS) and old.groups > 1:
        new.register_forward_pre_hook(_group_for_each_weight)
    elif isinstance(old, nn.LayerNorm | nn.RMSNorm) and isinstance(new, nn.LayerNorm | nn.RMSNorm):
        new.normalized_shape = tuple(new.weight.shape)
    elif isinstance(old, nn.GroupNorm) and isinstance(new, nn.GroupNorm):
        new.num_channels = new.weight.shape[0]
        if old.num_groups == old.num_channels or (whole_groups and old.num_groups > 1):
            new.num_groups = new.num_channels * old.num_groups // old.num_channels
    elif isinstance(new, BATCH_NORMS):
        tensors = [t for t in (new.weight, new.running_mean) if t is not None]
        new.num_features = tensors[0].shape[0] if tensors else new.num_features
