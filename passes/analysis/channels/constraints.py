"""Demands of a user on the widths of groups: a width, a largest share to lose, an equal width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pruneopt.errors import UserError

if TYPE_CHECKING:
    from pruneopt.passes.analysis.channels.groups import Coupling, Plan

__all__ = ["Constraints", "Limits", "MaxRatios", "Ties", "Widths"]

Widths = Mapping[str, int] | Iterable[str]
"""``{"layer1": 64}``, or texts ``layer1=64``."""
MaxRatios = float | Mapping[str, float] | Iterable[str]
"""``0.7`` for all groups, ``{"layer4.*": 0.5}``, or texts ``0.7`` and ``layer4.*=0.5``."""
Ties = Iterable[str | Iterable[str]]
"""``[("a", "b")]``, or texts ``a,b``."""


@dataclass(frozen=True)
class Limits:
    """Limits that the widths of the free groups of a network must obey; made by `limits_of`.

    Attributes:
        bounds: group -> the smallest and the largest width.
        tied: sets of groups that are equally wide.
        asked: group -> the option that bounds it, as on the command line.
    """

    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)

    def check(self, coupling: Coupling, plan: Plan) -> None:
        """Raise `UserError` for a plan outside of the limits: its pass does not heed them."""
        kept = {
            group.name: len(plan[group.name]) if group.name in plan else group.width
            for group in coupling.groups
        }
        for name, (low, high) in self.bounds.items():
            if not low <= kept[name] <= high:
                raise UserError(
                    f"the plan keeps {kept[name]} channels of group {name}, and {self.asked[name]} "
                    "allows "
                    f"{low if low == high else f'{low} to {high}'}: leave that out, or choose "
                    "widths by a budget, as "
                    "the pass l1 does"
                )
        for names in self.tied:
            if len({kept[name] for name in names}) > 1:
                shown = ", ".join(f"{kept[name]} of {name}" for name in names)
                raise UserError(
                    f"the plan keeps {shown}, and --tie {','.join(names)} asks for equal widths: "
                    "leave the tie out, or "
                    "choose widths by a budget, as the pass l1 does"
                )


@dataclass(frozen=True)
class Constraints:
    """Demands by the user's names; `parse` reads every way to write them.

    Attributes:
        width: name -> how many units are kept of every group that the name stands for.
        max_ratio: name -> the largest share that such a group loses; the name None: every group
            without another. Of several names for one group the last counts.
        tie: names of groups that are equally wide.
    """

    width: tuple[tuple[str, int], ...] = ()
    max_ratio: tuple[tuple[str | None, float], ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def parse(cls, width: Widths = (), max_ratio: MaxRatios = (), tie: Ties = ()) -> Constraints:
        """Read what a user wrote; `UserError` for an unknown form or an impossible number."""
        widths = width.items() if isinstance(width, Mapping) else map(_named_width, _listed(width))
        if isinstance(max_ratio, int | float):
            ratios: Iterable[tuple[str | None, float]] = [(None, float(max_ratio))]
        elif isinstance(max_ratio, Mapping):
            ratios = max_ratio.items()
        else:
            ratios = map(_named_ratio, _listed(max_ratio))
        return cls(
            tuple((name, _checked_width(name, value)) for name, value in widths),
            tuple((name, _checked_ratio(name, value)) for name, value in ratios),
            tuple(_checked_tie(item) for item in ([tie] if isinstance(tie, str) else tie)),
        )


# Texts


def _listed(given: Iterable[str]) -> Iterable[str]:
    return [given] if isinstance(given, str) else given


def _named_width(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not name or not number.strip().isdecimal():
        raise UserError(
            f"--width {text}: write a group and how many channels it keeps, such as layer1=64"
        )
    return name.strip(), int(number)


def _named_ratio(text: str) -> tuple[str | None, float]:
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if (equals and not name) or math.isnan(value):
        raise UserError(
            f"--max-ratio {text}: write a share, such as 0.7, or one for a group, such as "
            "layer4=0.5"
        )
    return name.strip() if equals else None, value


def _checked_width(name: str, width: object) -> int:
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise UserError(
            f"--width {name}={width}: a group keeps a whole number of channels, at least 1"
        )
    return width


def _checked_ratio(name: str | None, ratio: float) -> float:
    if not 0 <= ratio < 1:
        text = f"{ratio:g}" if name is None else f"{name}={ratio:g}"
        raise UserError(
            f"--max-ratio {text}: the largest share that a group loses is at least 0 and below 1"
        )
    return float(ratio)


def _checked_tie(names: str | Iterable[str]) -> tuple[str, ...]:
    found = names.split(",") if isinstance(names, str) else names
    return tuple(name.strip() for name in found if name.strip())
