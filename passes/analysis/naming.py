"""What a user's names stand for: a name, or a pattern with ``*``, over parameters, modules and channel groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.coupling import Coupling, groups_in
from pruneopt.passes.analysis.layers import layer_weight

__all__ = ["freeze_named", "is_within"]


def is_within(name: str, wanted: str) -> bool:
    """Whether a qualified name is that of a wanted module (or parameter), or of something inside it.

    ``wanted`` may be a pattern: ``*`` stands for any text, dots included, ``?`` for one character.
    """
    if name == wanted or name.startswith(f"{wanted}."):
        return True
    return _is_pattern(wanted) and any(fnmatchcase(outer, wanted) for outer in _prefixes(name))


def freeze_named(coupling: Coupling, names: Iterable[str]) -> Coupling:
    """Freeze named groups, and the channels that named modules or parameters make: a layer's output channels, all
    channels of any other weight. `UserError` for a name without match.
    """
    out_axis = {layer.value: layer.out_axis for layer in map(layer_weight, coupling.graph.ops) if layer is not None}
    chosen: set[int] = set()
    for name in names:
        hit = {i for i, group in enumerate(coupling.groups) if group.name == name or _matches(group.name, name)}
        for slot in coupling.slots:
            weight = slot.value
            named = weight.is_weight and is_within(weight.name, name)
            if named and slot.axes[-1] == out_axis.get(weight, slot.axes[-1]):
                hit.update(groups_in(slot, coupling.unit_group))
        if not hit and not any(is_within(param, name) for param in coupling.graph.params):
            guess = _guess(coupling, name)
            raise UserError(f"--ignore {name}: no parameter, module or channel group has this name: {guess}")
        chosen |= hit
    if not chosen:
        return coupling
    groups = tuple(
        replace(g, frozen=g.frozen or "ignored by request") if i in chosen else g for i, g in enumerate(coupling.groups)
    )
    return replace(coupling, groups=groups)


def _guess(coupling: Coupling, name: str) -> str:
    known = {group.name for group in coupling.groups}
    for param in coupling.graph.params:
        known.update(_prefixes(param))
    return did_you_mean(name, known)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _matches(name: str, wanted: str) -> bool:
    return _is_pattern(wanted) and fnmatchcase(name, wanted)


def _prefixes(name: str) -> list[str]:
    """A qualified name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
