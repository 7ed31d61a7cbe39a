"""The meaning of a user's constraints for the channel groups of a network."""

from __future__ import annotations

import math

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.constraints import Constraints, Limits
from pruneopt.passes.analysis.channels.groups import Coupling, Group
from pruneopt.passes.analysis.channels.naming import groups_named

__all__ = ["limits_of"]


def limits_of(coupling: Coupling, constraints: Constraints) -> Limits:
    """Return the bounds and ties of the free groups.

    Raises:
        UserError: a name without match, a width that a group cannot have, or constraints that
            contradict each other.
    """
    bounds: dict[str, tuple[int, int]] = {}
    asked: dict[str, str] = {}
    for group, ratio, text in _ratios(coupling, constraints):
        bounds[group.name] = (max(1, math.ceil(group.width * (1 - ratio) - 1e-9)), group.width)
        asked[group.name] = text
    for name, width in constraints.width:
        text = f"--width {name}={width}"
        for group in _free(groups_named(coupling, name, "--width"), text):
            _check_allowed(group, width, text)
            low, high = bounds.get(group.name, (1, group.width))
            if not low <= width <= high:
                raise UserError(
                    f"{text} and {asked[group.name]} contradict each other for group {group.name} "
                    f"({group.width} channels): change one of them"
                )
            bounds[group.name] = (width, width)
            asked[group.name] = text
    return Limits(bounds, tuple(_tied(coupling, names) for names in constraints.tie), asked)


def _ratios(coupling: Coupling, constraints: Constraints) -> list[tuple[Group, float, str]]:
    """Return the free groups that may not lose everything, each with its share and the option."""
    found: dict[str, tuple[Group, float, str]] = {}
    for name, ratio in sorted(constraints.max_ratio, key=lambda item: item[0] is not None):
        groups = coupling.groups if name is None else groups_named(coupling, name, "--max-ratio")
        text = f"--max-ratio {ratio:g}" if name is None else f"--max-ratio {name}={ratio:g}"
        found.update({group.name: (group, ratio, text) for group in groups if group.frozen is None})
    return list(found.values())


def _free(groups: tuple[Group, ...], text: str) -> list[Group]:
    """Return the groups that can be pruned; `UserError` where there is none."""
    free = [group for group in groups if group.frozen is None]
    if not free:
        raise UserError(
            f"{text}: group {groups[0].name} keeps all its channels: {groups[0].frozen}"
        )
    return free


def _check_allowed(group: Group, width: int, text: str) -> None:
    """Raise `UserError`, with the widths that are allowed, for one that a group cannot have."""
    if not group.minimum <= width <= group.width or width % group.step:
        low, step, full = group.minimum, group.step, group.width
        allowed = (
            f"{low} to {full}" if step == 1 else ", ".join(map(str, range(low, full + 1, step)))
        )
        if step > 1 and full // step > 8:
            allowed = f"{low}, {low + step}, {low + 2 * step}, ..., {full} (multiples of {step})"
        raise UserError(f"{text}: group {group.name} may keep {allowed} channels")


def _tied(coupling: Coupling, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of tied groups; `UserError` unless they can be equally wide."""
    text = f"--tie {','.join(names)}"
    groups: dict[str, Group] = {}
    for name in names:
        groups.update(
            {group.name: group for group in _free(groups_named(coupling, name, "--tie"), text)}
        )
    if len(groups) < 2:
        what = f"only group {next(iter(groups))}" if groups else "no group"
        raise UserError(
            f"{text} is about {what}: name two groups or more, or a pattern that fits several"
        )
    if len({group.width for group in groups.values()}) > 1:
        shown = ", ".join(f"{group.name} has {group.width}" for group in groups.values())
        raise UserError(
            f"{text}: groups that are equally wide in the result must be so now, but {shown} "
            "channels"
        )
    return tuple(groups)
