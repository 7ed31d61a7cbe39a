"""Pruning results of pns, from plans and back: a list of the channels that every layer keeps.

Entries: BatchNorm2d ``{name, keep_idxes}``, Conv2d ``{name, in_channels_keep_idxes,
out_channels_keep_idxes}``, Linear ``{name, in_features_keep_idxes}`` (expanded over a flatten). The
order of a list is the order of the channels in the pruned network; pns does not always sort them,
so its weights are brought into the order of the original network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.pns.network import Layer, Network

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PruningResult", "write_result"]

NORM, OUT, IN, FEATURES = (
    "keep_idxes",
    "out_channels_keep_idxes",
    "in_channels_keep_idxes",
    "in_features_keep_idxes",
)


def write_result(coupling: Coupling, plan: Plan) -> list[dict[str, Any]]:
    """Return the result list of a plan: batch norms, convolutions, Linear behind batch norms.

    Raises:
        UserError: a plan that breaks a constraint, or that removes what pns has no entry for.
    """
    network, kept = Network(coupling), np.append(coupling.kept_units(plan), True)
    _check_expressible(network, kept)

    def left(units: np.ndarray) -> list[int]:
        places: list[int] = np.flatnonzero(kept[units]).tolist()
        return places

    found: list[dict[str, Any]] = [
        {"name": name, NORM: left(network.norm_units(name))} for name in network.norms
    ]
    convs = [layer for layer in network.layers.values() if layer.is_conv]
    found += [{"name": conv.name, IN: left(conv.read), OUT: left(conv.made)} for conv in convs]
    for layer in network.layers.values():
        if not layer.is_conv and (network.before(layer) or not kept[layer.read].all()):
            found.append({"name": layer.name, FEATURES: left(layer.read)})
    return found


def _check_expressible(network: Network, kept: np.ndarray) -> None:
    coupling = network.coupling
    known = {layer.weight.value.name.rpartition(".")[0] for layer in network.layers.values()} | set(
        network.norms
    )
    for layer in network.layers.values():
        if not layer.is_conv and not kept[layer.made].all():
            raise UserError(
                "pns has no entry for the outputs of a Linear, and the plan removes some of "
                f"{layer.name}"
            )
        if layer.grouped and not (kept[layer.made].all() and kept[layer.read].all()):
            raise UserError(
                "pns cannot cut convolutions in groups, and the plan removes channels of "
                f"{layer.name}"
            )
    for slot in coupling.slots:
        if (
            slot.value.is_weight
            and slot.value.name.rpartition(".")[0] not in known
            and not kept[slot.units].all()
        ):
            raise UserError(
                "pns cuts Conv2d, BatchNorm2d and Linear only, and the plan removes channels of "
                f"{slot.value.name}"
            )


# From a result to a plan


@dataclass(frozen=True, slots=True)
class _Entry:
    """The places that a layer keeps of what it makes and reads, in pruned order."""

    name: str
    made: np.ndarray | None
    read: np.ndarray | None


class PruningResult:
    """A result list, read against a network.

    Args:
        data: the list, as JSON gives it. Names may carry the prefix of a wrapper, such as
            ``model.``.
        coupling: of the original network.
        where: the list is from, for messages.

    Raises:
        UserError: no result list, an unknown layer, or indices out of range.
    """

    def __init__(self, data: Any, coupling: Coupling, where: str) -> None:
        if not isinstance(data, list) or not all(
            isinstance(e, dict) and isinstance(e.get("name"), str) for e in data
        ):
            raise UserError(f"{where} is no pns result: it must be a list of entries with a name")
        self.where, self.coupling, self.network = where, coupling, Network(coupling)
        self._known = {*self.network.norms, *self.network.layers}
        self.prefix = _prefix([entry["name"] for entry in data], self._known)
        self._entries: dict[str, _Entry] = {}
        # Batch norms first: a convolution behind a concatenation is read by what they say.
        for entry in sorted(data, key=lambda entry: NORM not in entry):
            name = entry["name"].removeprefix(self.prefix)
            self._entries[name] = self._entry(name, entry)

    def plan(self) -> dict[str, np.ndarray]:
        """Return the plan that the list stands for.

        Raises:
            UserError: layers that contradict each other or are left out, or a plan that breaks a
                constraint.
        """
        coupling = self.coupling
        kept = np.ones(
            len(coupling.unit_group) + 1, dtype=bool
        )  # the last stands for no unit: always kept
        said = np.full(len(coupling.unit_group), "", dtype=object)
        for who, units, places in self._sides():
            if places is not None:
                self._note(who, units, places, kept, said)
        for who, units, places in self._sides():
            if places is None and not kept[units].all():
                raise UserError(
                    f"{self.where} leaves out {who}, of which other entries remove channels"
                )
        touched = np.unique(coupling.unit_group[~kept[:-1]]).tolist()
        plan = {
            coupling.groups[n].name: np.flatnonzero(kept[coupling.groups[n].units]) for n in touched
        }
        try:
            coupling.kept_units(plan)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error
        return plan

    def in_graph_order(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that pns left, sorted as in the original, without a prefix."""
        import torch

        found = {}
        for full, tensor in weights.items():
            key = full.removeprefix(self.prefix)
            entry = self._entries.get(key.rpartition(".")[0])
            sides = (entry.made, entry.read) if entry is not None else ()
            for axis, places in enumerate(sides):
                if places is not None and tensor.dim() > axis:
                    order = torch.from_numpy(np.argsort(places))
                    if tensor.shape[axis] != len(order):
                        found_and_kept = (
                            f"{tensor.shape[axis]} channels on axis {axis}, not the {len(order)}"
                        )
                        raise UserError(f"{full} has {found_and_kept} that {self.where} keeps")
                    tensor = tensor.index_select(axis, order.to(tensor.device))
            found[key] = tensor
        return found

    # Reading

    def _entry(self, name: str, entry: dict[str, Any]) -> _Entry:
        if name in self.network.norms:
            return _Entry(name, self._places(entry, NORM, len(self.network.norm_units(name))), None)
        layer = self.network.layers.get(name)
        if layer is None:
            guess = did_you_mean(name, self._known)
            raise UserError(
                f"{self.where} names {name}, but the network has no layer of this name: {guess}"
            )
        if not layer.is_conv:
            return _Entry(name, None, self._places(entry, FEATURES, len(layer.read)))
        made = self._outputs(layer, self._places(entry, OUT, len(layer.made)))
        # A depthwise convolution has one input channel for each output: its inputs say nothing of
        # their own.
        return _Entry(
            name, made, None if layer.depthwise else self._places(entry, IN, len(layer.read))
        )

    def _outputs(self, layer: Layer, places: np.ndarray) -> np.ndarray:
        """Return the places of a layer's outputs before the cut.

        pns cuts a convolution behind a concatenation twice, and notes the second list only, which
        is renumbered already.
        """
        norm = self._entries.get(self.network.after(layer))
        if norm is None or norm.made is None or not self.network.concatenated(layer):
            return places
        return norm.made if np.array_equal(places, np.arange(len(norm.made))) else places

    def _places(self, entry: dict[str, Any], key: str, width: int) -> np.ndarray:
        given = entry.get(key)
        if not isinstance(given, list) or not all(type(place) is int for place in given):
            raise UserError(
                f"{self.where}: the entry of {entry['name']} has no list of whole numbers under "
                f"{key!r}"
            )
        places = np.array(given, dtype=np.int64)
        if (
            not len(places)
            or places.min() < 0
            or places.max() >= width
            or len(np.unique(places)) != len(places)
        ):
            raise UserError(
                f"{self.where}: {key} of {entry['name']} must be some different numbers from 0 to "
                f"{width - 1}"
            )
        return places

    # Agreement

    def _sides(self) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """Yield what layers make and read: in words, the units, and the places kept (or None)."""
        for name in self.network.norms:
            entry = self._entries.get(name)
            yield name, self.network.norm_units(name), entry.made if entry else None
        for name, layer in self.network.layers.items():
            entry = self._entries.get(name)
            yield f"the outputs of {name}", layer.made, entry.made if entry else None
            if not layer.depthwise:
                yield f"the inputs of {name}", layer.read, entry.read if entry else None

    def _note(
        self, who: str, units: np.ndarray, places: np.ndarray, kept: np.ndarray, said: np.ndarray
    ) -> None:
        """Note which units a layer keeps; `UserError` for a contradiction."""
        flags = np.zeros(len(units), dtype=bool)
        flags[places] = True
        inside = units >= 0
        if not flags[~inside].all():
            raise UserError(f"{self.where} removes places of {who} that belong to no channel")
        total, count = (
            np.bincount(u, minlength=len(said)) for u in (units[inside], units[inside & flags])
        )
        if ((count > 0) & (count < total)).any():
            raise UserError(f"{self.where} keeps only a part of one channel in {who}")
        mine = np.flatnonzero(total)
        other = mine[(said[mine] != "") & (kept[mine] != (count[mine] > 0))]
        if len(other):
            raise UserError(
                f"{self.where}: {said[other[0]]} and {who} share channels, but do not keep the "
                "same ones"
            )
        kept[mine] = count[mine] > 0
        said[mine] = who


def _prefix(names: Sequence[str], known: Collection[str]) -> str:
    """Return what a wrapper put before all of ``names``, such as ``model.``; empty if nothing."""
    if not names or names[0] in known:
        return ""
    parts = names[0].split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if names[0].removeprefix(prefix) in known and all(
            name.startswith(prefix) for name in names
        ):
            return prefix
    return ""
