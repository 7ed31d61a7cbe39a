"""MetaPruning's PruningNet for any captured network: one network that has weights for every width
vector.

Liu et al., ICCV 2019 (arXiv 1903.10258), section 3.1 and the released code. Hypernetworks turn the
scales of a block's widths into full-width weights; of these the leading units of every group are
taken, and the network runs at the sliced sizes. Which units a tensor holds is known from the
channel groups, so that grouped layers, concatenations, attention and flattened maps are cropped as
slicing crops them: the result is the sliced network with the cropped weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.schema import DTYPES
from pruneopt.models.workload import seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.search.pruning_net.hypernet import (
    Chunked,
    Sizes,
    generated_weights,
    hypernetwork,
)
from pruneopt.passes.search.pruning_net.norm_bank import Places, is_norm, norm_banks
from pruneopt.passes.transform.scratch import fresh_weights

__all__ = ["Norms", "PruningNet", "leading_plan", "parameter_count"]

Norms = Literal["bank", "recalibrate"]
MOMENTUM = 0.1
"""Of running statistics where the network leaves it open."""


def leading_plan(
    coupling: Coupling, groups: Sequence[str], widths: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the plan that keeps the first units of every block; ``widths`` int64 `[G]` in the
    order of ``groups``."""
    found = {}
    for name, width in zip(groups, widths.tolist(), strict=True):
        group = coupling.group(name)
        found[name] = np.concatenate([block[: width // group.step] for block in group.blocks])
    return found


@dataclass(frozen=True)
class _Crop:
    """The network at one width vector: its kept units, scales `[G]`, sliced graph, and the graph's
    interpreter."""

    kept: np.ndarray
    scales: np.ndarray
    graph: Graph
    interpreter: Interpreter


class PruningNet(nn.Module):
    """A network whose weights are generated for the width vector that was chosen last (`choose`).

    In training mode batch norm uses the batch and updates the statistics of the chosen widths, in
    evaluation mode it uses these. Statistics of a width vector that was never drawn mean nothing:
    recompute them on `candidate`.

    Args:
        coupling: of the network; its graph's weights are not used, but for parameters that belong
            to no layer (a position embedding), which start from them: `inherited` names these.
        groups: all free groups, in the order of width vectors.
        searched: those whose width varies.
        grid: the scales of the search, ascending, `[S]`.
        sizes: of the hypernetworks.
        norms: ``bank`` keeps batch-norm statistics for every scale of the grid, as MetaPruning
            does; ``recalibrate`` one set for all, which only recomputation makes meaningful.
        affine: whether batch norms have scales and shifts.
        seed: of the initialisation.

    Raises:
        UserError: no weight depends on a searched group.
    """

    def __init__(
        self,
        coupling: Coupling,
        groups: Sequence[str],
        searched: Sequence[str],
        grid: Sequence[float],
        *,
        sizes: Sizes | None = None,
        norms: Norms = "bank",
        affine: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.coupling, self.groups, self.grid = (
            coupling,
            tuple(groups),
            np.asarray(grid, dtype=np.float64),
        )
        sizes = sizes or Sizes()
        self.generated = generated_weights(coupling, searched, sizes)
        if not self.generated:
            raise UserError(
                f"no convolution or linear layer of {coupling.graph.name} has a width to search"
            )
        self._bare = _without_weights(coupling.graph)
        self._inputs = [self._columns(weight.groups) for weight in self.generated]
        sets = len(grid) if norms == "bank" else 1
        self._norms = norm_banks(coupling, self.groups, set(searched), sets, affine)
        self.norms = nn.ModuleDict({_key(name): norm for name, norm in self._norms.items()})
        with seeded(seed):
            self.hypernets = hypernetwork(self.generated, sizes)
        self._crop: _Crop | None = None
        self.inherited: list[str] = []
        self.ordinary = nn.ParameterDict()
        self._held: dict[str, str] = {}
        self._take_ordinary(seed)

    def _take_ordinary(self, seed: int) -> None:
        """Take everything else that the network reads: parameters at full width, fresh where a
        layer owns them; buffers."""
        graph = self.coupling.graph
        made = {weight.name for weight in self.generated}
        for norm in self._norms.values():
            made.update(norm.names.values())
        fresh, bare = fresh_weights(graph, seed)
        self.inherited = [name for name in bare if name not in made]
        for name, value in graph.params.items():
            tensor = fresh.get(name, graph.weights[name])
            if name in made:
                continue
            if value.kind == "param" and tensor.is_floating_point():
                self.ordinary[_key(name)] = nn.Parameter(tensor.detach().clone())
            else:
                self._held[name] = f"held_{len(self._held)}"
                self.register_buffer(self._held[name], tensor.detach().clone(), persistent=False)

    def decayed(self) -> set[str]:
        """Return the names of the parameters that weight decay acts on: hypernetworks, and layers
        with ordinary weights (the classifier), with their biases; not batch norms, other norms, or
        parameters outside layers.
        """
        made = {weight.name for weight in self.generated}
        own: set[str] = set()
        for op in self.coupling.graph.ops:
            layer = layer_weight(op)
            if layer is not None and layer.value.name not in made:
                own.update(
                    f"ordinary.{_key(value.name)}" for value in op.inputs if value.kind == "param"
                )
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name in own or name.startswith("hypernets.")}

    # Choosing

    def choose(self, widths: np.ndarray, scales: np.ndarray | None = None) -> None:
        """Take a width vector, int64 `[G]` in the order of `groups`, for what follows.

        ``scales`` `[G]` are the entries of the grid that it came from; without them widths count as
        shares of the full.
        """
        full = np.array([self.coupling.group(name).width for name in self.groups])
        shares = widths / full if scales is None else np.asarray(scales, dtype=np.float64)
        plan = leading_plan(self.coupling, self.groups, widths)
        graph = slice_graph(self._bare, self.coupling, plan)
        self._crop = _Crop(self.coupling.kept_units(plan), shares, graph, Interpreter(graph))

    def _chosen(self) -> _Crop:
        if self._crop is None:
            raise InternalError("PruningNet runs before widths were chosen")
        return self._crop

    def weights(self) -> dict[str, Tensor]:
        """Return everything that the sliced graph of the chosen widths reads, by name, on the
        device of the parameters."""
        return self._weights(self._chosen())[0]

    def _weights(self, crop: _Crop) -> tuple[dict[str, Tensor], dict[str, Places]]:
        """Return all weights, and for every batch norm which of its statistics they are."""
        params = self.coupling.graph.params
        full = self.full_weights()
        found = {
            name: gather_kept(full[name], self.coupling.slots_of(params[name]), crop.kept)
            for name in full
        }
        places = {}
        for name, norm in self._norms.items():
            places[name] = norm.places(crop.kept, crop.scales, self.grid)
            found.update(norm.tensors(places[name]))
        device = next(self.parameters()).device
        found.update({name: tensor.to(device) for name, tensor in crop.graph.weights.items()})
        return found, places

    def full_weights(self) -> dict[str, Tensor]:
        """Return weights, ordinary parameters and buffers for the chosen scales at full width, by
        name; no batch norms."""
        device = next(self.parameters()).device
        scales = torch.as_tensor(
            np.append(self._chosen().scales, 1.0), dtype=torch.float32, device=device
        )
        inputs = [scales[columns] for columns in self._inputs]
        if isinstance(self.hypernets, Chunked):
            made = self.hypernets(inputs)
        else:
            made = [net(own) for net, own in zip(self.hypernets, inputs, strict=True)]  # type: ignore[call-overload]
        found = {weight.name: tensor for weight, tensor in zip(self.generated, made, strict=True)}
        for name in self.coupling.graph.params:
            if name in self._held:
                found[name] = getattr(self, self._held[name])
            elif _key(name) in self.ordinary:
                found[name] = self.ordinary[_key(name)]
        return found

    def _columns(self, names: Sequence[str]) -> list[int]:
        """Return the places of groups in the scales; one behind the last is the constant 1."""
        return [
            self.groups.index(name) if name in self.groups else len(self.groups) for name in names
        ]

    # Running

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs of the network at the chosen widths, in the structure the model
        returns them."""
        crop = self._chosen()
        weights, places = self._weights(crop)
        outputs = crop.interpreter.run(weights, *inputs, training=self.training)
        if self.training:
            for name, norm in self._norms.items():
                norm.keep(places[name], weights)
        return outputs

    def candidate(self) -> nn.Module:
        """Return the sliced network at the chosen widths with its generated weights, as a module of
        its own."""
        crop = self._chosen()
        with torch.no_grad():
            weights = {
                name: tensor.detach().contiguous() for name, tensor in self.weights().items()
            }
        return build_module(crop.graph, weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> PruningNet:
        """Return a copy with parameters of its own; the graph, which nobody changes, stays
        shared."""
        for shared in (
            self.coupling,
            self._bare,
            self._crop,
            *(norm.slots for norm in self._norms.values()),
        ):
            memo[id(shared)] = shared
        twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def parameter_count(
    coupling: Coupling,
    searched: Sequence[str],
    entries: int,
    sizes: Sizes,
    norms: Norms,
    affine: bool,
) -> int:
    """Return how many parameters a `PruningNet` has, without making it; see there for the
    arguments."""
    generated = generated_weights(coupling, searched, sizes)
    banks = norm_banks(coupling, (), set(searched), entries if norms == "bank" else 1, affine)
    taken = {weight.name for weight in generated}.union(
        *(bank.names.values() for bank in banks.values())
    )
    with torch.device("meta"):
        hypernets = hypernetwork(generated, sizes)
    rest = (
        value
        for value in coupling.graph.params.values()
        if value.kind == "param" and value.name not in taken
    )
    ordinary = sum(
        math.prod(value.type.shape())
        for value in rest
        if DTYPES[value.type.dtype].is_floating_point
    )
    made = [
        *hypernets.parameters(),
        *(item for bank in banks.values() for item in bank.parameters()),
    ]
    return ordinary + sum(parameter.numel() for parameter in made)


def _key(name: str) -> str:
    """Return a parameter's name as PyTorch accepts it in a container."""
    return name.replace(".", "/")


def _without_weights(graph: Graph) -> Graph:
    """Return a copy that slicing cuts without touching a tensor; every batch norm has a
    momentum."""
    bare = graph.copy()
    bare.weights = {}
    for op in bare.ops:
        if is_norm(op) and op.attrs.get("momentum") is None:
            bare.set_attr(op, "momentum", MOMENTUM)
    return bare
