"""The meaning of a user's names: a name, or a pattern with ``*``, over parameters, modules and
channel groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling, Group, groups_in

__all__ = ["freeze_named", "groups_named", "is_within"]


def is_within(name: str, wanted: str) -> bool:
    """Return whether a qualified name is that of a wanted module (or parameter), or of something
    inside it.

    ``wanted`` may be a pattern: ``*`` stands for any text, dots included, ``?`` for one character.
    """
    if name == wanted or name.startswith(f"{wanted}."):
        return True
    return _is_pattern(wanted) and any(fnmatchcase(outer, wanted) for outer in _prefixes(name))


def freeze_named(coupling: Coupling, names: Iterable[str]) -> Coupling:
    """Freeze named groups, and the channels that named modules or parameters make: a layer's output
    channels, all channels of any other weight. `UserError` for a name without match.
    """
    chosen: set[str] = set()
    for name in names:
        chosen.update(group.name for group in coupling.groups if group.name == name)
        chosen.update(group.name for group in _found(coupling, name, "--ignore"))
    if not chosen:
        return coupling
    groups = tuple(
        replace(group, frozen=group.frozen or "ignored by request")
        if group.name in chosen
        else group
        for group in coupling.groups
    )
    return replace(coupling, groups=groups)


def groups_named(coupling: Coupling, name: str, option: str) -> tuple[Group, ...]:
    """Return the groups that a name stands for, at least one, in the coupling's order.

    The name of a group is that group alone. Any other is one of a module or parameter, or a pattern
    over all three kinds of names: the groups of the channels that it makes.

    Raises:
        UserError: there is none; ``option`` is named as the place of the mistake.
    """
    exact = tuple(group for group in coupling.groups if group.name == name)
    found = exact or _found(coupling, name, option)
    if not found:
        raise UserError(
            f"{option} {name}: it makes no channels that belong to a group; `pruneopt inspect` "
            "lists them"
        )
    return found


def _found(coupling: Coupling, name: str, option: str) -> tuple[Group, ...]:
    """Return the groups that modules and parameters of a name make, or that match a pattern;
    `UserError` for no match."""
    out_axis = {
        layer.value: layer.out_axis for layers in coupling.layers.values() for layer in layers
    }
    hit = {
        i
        for i, group in enumerate(coupling.groups)
        if _is_pattern(name) and fnmatchcase(group.name, name)
    }
    for slot in coupling.slots:
        weight = slot.value
        named = weight.is_weight and is_within(weight.name, name)
        if named and slot.axes[-1] == out_axis.get(weight, slot.axes[-1]):
            hit.update(groups_in(slot, coupling.unit_group))
    groups = {group.name for group in coupling.groups}
    if (
        not hit
        and name not in groups
        and not any(is_within(param, name) for param in coupling.graph.params)
    ):
        known = groups.union(*map(_prefixes, coupling.graph.params))
        raise UserError(
            f"{option} {name}: no parameter, module or channel group has this name: "
            f"{did_you_mean(name, known)}"
        )
    return tuple(group for i, group in enumerate(coupling.groups) if i in hit)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _prefixes(name: str) -> list[str]:
    """Return a qualified name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
