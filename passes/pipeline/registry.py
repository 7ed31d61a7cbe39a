"""The names of the passes: a table from name to where the class lives, imported when asked for.

Other packages add passes by entry point: group ``pruneopt.passes``, the pass's name,
``module:Class``. A script, a notebook or a model file adds its own with `register_pass`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from inspect import isabstract
from typing import TypeVar

from pruneopt.errors import UserError
from pruneopt.passes.options.registry import describe, find, has_name, known, merge, register
from pruneopt.passes.pipeline.base import Pass

__all__ = ["GROUP", "all_passes", "pass_class", "pass_names", "register_pass"]

S = TypeVar("S", bound=type[Pass])
GROUP = "pruneopt.passes"

_BUILT_IN = {
    "drop-blocks": "pruneopt.passes.depth.drop_blocks:DropBlocks",
    "couple": "pruneopt.passes.transform.stages:Couple",
    "cost": "pruneopt.passes.transform.stages:Cost",
    "prune": "pruneopt.passes.selection.prune:Prune",
    "uniform": "pruneopt.passes.selection.prune:Uniform",
    "l1": "pruneopt.passes.selection.prune:L1",
    "random": "pruneopt.passes.selection.prune:Random",
    "abn": "pruneopt.passes.search.abn:AdaptiveBN",
    "metapruning": "pruneopt.passes.search.metapruning:MetaPruning",
    "rewarded": "pruneopt.passes.search.rewarded:Rewarded",
    "explore": "pruneopt.passes.front.explore:Explore",
    "front": "pruneopt.passes.front.front_point:FrontPoint",
    "plan": "pruneopt.passes.transform.given_plan:GivenPlan",
    "slimming": "pruneopt.passes.regularised.slimming:Slimming",
    "greg1": "pruneopt.passes.regularised.greg:GReg1",
    "greg2": "pruneopt.passes.regularised.greg:GReg2",
    "hrank": "pruneopt.passes.selection.hrank:HRankPass",
    "strategy": "pruneopt.passes.search.strategy:StrategyPass",
    "slice": "pruneopt.passes.transform.stages:Slice",
    "verify": "pruneopt.passes.transform.stages:Verify",
    "repair": "pruneopt.passes.repair.repair:Repair",
    "recalibrate": "pruneopt.passes.transform.recalibrate:Recalibrate",
    "finetune": "pruneopt.passes.transform.finetune:Finetune",
    "scratch": "pruneopt.passes.transform.scratch:Scratch",
}


@cache
def _table() -> dict[str, str]:
    """Return the table of all passes, built in or installed: name -> ``module:Class``."""
    return merge(_BUILT_IN, tuple(entry_points(group=GROUP)))


def register_pass(kind: S) -> S:
    """Make a pass known by its name for the rest of the process, and return it.

    Works as a decorator, ``@register_pass`` above ``@dataclass(frozen=True)``. A class that is
    defined again at the same place (a notebook cell, a model file that is read twice) takes the
    place of the earlier one.

    Raises:
        UserError: no complete pass with a name of its own, or a name that another one has.
    """
    if not _is_pass(kind) or isabstract(kind):
        raise UserError(
            f"{describe(kind)} cannot be registered: a pass is a subclass of Pass that sets name "
            "and summary and defines run"
        )
    register("pass", _table(), kind)
    return kind


def _is_pass(found: object, name: str | None = None) -> bool:
    """Return whether an object is a pass with a name of its own: ``name``, where one is given."""
    return isinstance(found, type) and issubclass(found, Pass) and has_name(found, name)


def pass_names() -> tuple[str, ...]:
    """Return the names of all passes, built in first."""
    return tuple(known("pass", _table()))


def pass_class(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        UserError: no pass has this name, or the package that brings it does not work.
    """
    found = find("pass", name, _table())
    if not _is_pass(found, name):
        raise UserError(
            f"{_table()[name]}, registered as the pass {name!r}, is not a pass of that name"
        )
    assert issubclass(found, Pass)
    return found


def all_passes() -> dict[str, type[Pass]]:
    """Import every pass, and return them by name."""
    return {name: pass_class(name) for name in pass_names()}
