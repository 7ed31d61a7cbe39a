"""The names of the passes and their parts: tables from name to where the class lives, imported only
when asked for.

Other packages add passes by entry point: group ``pruneopt.passes``, the pass's name,
``module:Class``; and parts in the groups of `PART_GROUPS`. A script, a notebook or a model file
adds its own with `register_pass` and `register_part`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import TypeVar

from pruneopt.errors import InternalError, UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.pipeline.base import Configured, Part, Pass

__all__ = [
    "GROUP",
    "PART_GROUPS",
    "all_passes",
    "part_class",
    "part_kinds",
    "part_names",
    "pass_class",
    "pass_names",
    "register_part",
    "register_pass",
]

S = TypeVar("S", bound=type[Pass])
P = TypeVar("P", bound=type[Part])
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
    "recalibrate": "pruneopt.passes.search.adaptive_bn:Recalibrate",
    "finetune": "pruneopt.passes.transform.finetune:Finetune",
    "scratch": "pruneopt.passes.transform.scratch:Scratch",
}


PART_GROUPS = {
    "criterion": "pruneopt.criteria",
    "searcher": "pruneopt.searchers",
    "evaluator": "pruneopt.evaluators",
    "ranking": "pruneopt.rankings",
    "regulariser": "pruneopt.regularisers",
    "recipe": "pruneopt.recipes",
    "target": "pruneopt.targets",
}
"""The entry-point group of every kind of part."""

_PARTS: dict[str, dict[str, str]] = {
    "criterion": {
        "l1": "pruneopt.passes.analysis.importance.criteria:L1Norm",
        "l2": "pruneopt.passes.analysis.importance.criteria:L2Norm",
        "bn-scale": "pruneopt.passes.analysis.importance.criteria:NormScale",
        "taylor": "pruneopt.passes.analysis.importance.criteria:Taylor",
        "fpgm": "pruneopt.passes.analysis.importance.criteria:FPGM",
        "random": "pruneopt.passes.analysis.importance.criteria:RandomScore",
        "hrank": "pruneopt.passes.selection.hrank:HRank",
    },
    "searcher": {
        "random": "pruneopt.passes.search.searchers.random_search:RandomSearch",
        "evolution": "pruneopt.passes.search.searchers.evolution:Evolution",
        "tpe": "pruneopt.passes.search.searchers.optuna_searchers:TPE",
        "cma-es": "pruneopt.passes.search.searchers.optuna_searchers:CMAES",
        "nsga2": "pruneopt.passes.search.searchers.optuna_searchers:NSGA2",
    },
    "evaluator": {
        "abn": "pruneopt.passes.search.evaluators.evaluator:AdaptiveStatistics",
        "reference": "pruneopt.passes.search.evaluators.evaluator:ReferenceStatistics",
        "stale": "pruneopt.passes.search.evaluators.evaluator:StaleStatistics",
        "finetune": "pruneopt.passes.search.evaluators.evaluator:ShortTraining",
        "pruning-net": "pruneopt.passes.search.pruning_net.evaluator:PruningNetWeights",
    },
    "ranking": {
        "accuracy": "pruneopt.passes.search.ranking:Accuracy",
        "reward": "pruneopt.passes.search.ranking:Reward",
        "accuracy-under-latency": "pruneopt.passes.search.ranking:AccuracyUnderLatency",
        "function": "pruneopt.passes.search.ranking_function:Function",
    },
    "regulariser": {
        "growing": "pruneopt.passes.regularised.growing:Growing",
        "gamma-l1": "pruneopt.passes.regularised.gamma:GammaL1",
        "group-norm": "pruneopt.passes.regularised.group_norm:GroupNorm",
    },
    "recipe": {
        "sgd": "pruneopt.passes.training.recipe:SGD",
        "adamw": "pruneopt.passes.training.recipe:AdamW",
    },
    "target": {
        "torch-cpu": "pruneopt.passes.targets.torch_targets:TorchCPU",
        "torch-cuda": "pruneopt.passes.targets.torch_targets:TorchCUDA",
        "ort-cpu": "pruneopt.passes.targets.ort_targets:OrtCPU",
        "ort-cuda": "pruneopt.passes.targets.ort_targets:OrtCUDA",
        "ort-tensorrt": "pruneopt.passes.targets.ort_targets:OrtTensorRT",
    },
}


@cache
def _table() -> dict[str, str]:
    """Name -> ``module:Class`` of every pass, built in or installed; `UserError` where two packages
    claim a name."""
    return merge(_BUILT_IN, tuple(entry_points(group=GROUP)))


@cache
def _parts(kind: str) -> dict[str, str]:
    """The same for the parts of a kind."""
    return merge(_PARTS[kind], tuple(entry_points(group=PART_GROUPS[kind])), kind)


def merge(
    built_in: dict[str, str], plugins: tuple[EntryPoint, ...], what: str = "pass"
) -> dict[str, str]:
    """A table with what is installed added; `UserError` that names both origins where a name is
    taken twice."""
    table = dict(built_in)
    origin = dict.fromkeys(built_in, "pruneopt")
    for plugin in plugins:
        owner = plugin.dist.name if plugin.dist is not None else plugin.value
        # One package found twice on the path is no clash.
        if table.get(plugin.name, plugin.value) != plugin.value:
            raise UserError(
                f"two packages define a {what} named {plugin.name!r}: {origin[plugin.name]} "
                f"({table[plugin.name]}) and "
                f"{owner} ({plugin.value}); uninstall or rename one"
            )
        table[plugin.name] = plugin.value
        origin[plugin.name] = owner
    return table


_registered: dict[tuple[str, str], type[Configured]] = {}
"""What this process registered: ``pass`` or the kind of a part, and the name -> the class."""


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
            f"{_place(kind)} cannot be registered: a pass is a subclass of Pass that sets name and "
            "summary and defines run"
        )
    _register("pass", _table(), kind)
    return kind


def register_part(kind: P) -> P:
    """Make a part known by its kind and name for the rest of the process, and return it; see
    `register_pass`.

    Raises:
        UserError: no complete part with a name of its own, or a name that another one has.
    """
    what = getattr(kind, "kind", None)
    if what not in PART_GROUPS or not _is_part(kind, what) or isabstract(kind):
        raise UserError(
            f"{_place(kind)} cannot be registered: a part is a subclass of one of the kinds "
            f"({', '.join(PART_GROUPS)}) that sets name and summary and defines every abstract "
            "method"
        )
    _register(what, _parts(what), kind)
    return kind


def _is_pass(found: object, name: str | None = None) -> bool:
    """Return whether an object is a pass with a name of its own: ``name``, where one is given."""
    return isinstance(found, type) and issubclass(found, Pass) and _has_name(found, name)


def _is_part(found: object, kind: str, name: str | None = None) -> bool:
    """Return whether an object is a part of a kind with a name of its own."""
    return (
        isinstance(found, type)
        and issubclass(found, Part)
        and getattr(found, "kind", None) == kind
        and _has_name(found, name)
    )


def _has_name(found: type[Configured], name: str | None) -> bool:
    own = found.__dict__.get("name")
    return own is not None and own == (name or own)


def _place(kind: object) -> str:
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
    return f"{module}:{name}" if isinstance(name, str) else repr(kind)


def _register(what: str, installed: dict[str, str], kind: type[Configured]) -> None:
    if not isinstance(getattr(kind, "summary", None), str):
        raise UserError(f"{_place(kind)} cannot be registered: it sets no summary")
    earlier = _registered.get((what, kind.name))
    taken = installed.get(kind.name) if earlier is None else _place(earlier)
    if taken not in (None, _place(kind)):
        raise UserError(
            f"two classes define a {what} named {kind.name!r}: {taken} and {_place(kind)}; "
            "rename one"
        )
    _registered[what, kind.name] = kind


def _with_registered(what: str, installed: dict[str, str]) -> dict[str, str]:
    """Return a table with what this process registered added."""
    added = {name: _place(kind) for (own, name), kind in _registered.items() if own == what}
    return {**installed, **added}


def pass_names() -> tuple[str, ...]:
    """Return the names of all passes, built in first."""
    return tuple(_with_registered("pass", _table()))


def part_kinds() -> tuple[str, ...]:
    """Return every kind of part."""
    return tuple(PART_GROUPS)


def part_names(kind: str) -> tuple[str, ...]:
    """Return the names of all parts of a kind, built in first."""
    return tuple(_with_registered(kind, _parts(kind)))


def pass_class(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        UserError: no pass has this name, or the package that brings it does not work.
    """
    found = _found("pass", name, _table())
    if not _is_pass(found, name):
        raise UserError(
            f"{_table()[name]}, registered as the pass {name!r}, is not a pass of that name"
        )
    assert issubclass(found, Pass)
    return found


def part_class(kind: str, name: str) -> type[Part]:
    """Return the class of a part.

    Raises:
        UserError: no part of this kind has this name, or the package that brings it does not work.
    """
    found = _found(kind, name, _parts(kind))
    if not _is_part(found, kind, name):
        raise UserError(
            f"{_parts(kind)[name]}, registered as the {kind} {name!r}, is not a {kind} of that name"
        )
    assert issubclass(found, Part)
    return found


def _found(what: str, name: str, installed: dict[str, str]) -> type[Configured]:
    """Return what a name stands for, registered or to be imported."""
    registered = _registered.get((what, name))
    if registered is not None:
        return registered
    if name not in installed:
        known = _with_registered(what, installed)
        raise UserError(f"there is no {what} {name!r}: {did_you_mean(name, known)}")
    return _load(installed[name], name, what)


def _load(place: str, name: str, what: str) -> type[Configured]:
    """Import the object at a place, ``module:Class``."""
    module, _, attribute = place.partition(":")
    try:
        found: type[Configured] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if module.startswith("pruneopt."):
            raise InternalError(
                f"the {what} {name} cannot be loaded from {place}: {error}"
            ) from error
        raise UserError(
            f"the {what} {name} cannot be loaded from {place}: {error}; repair or uninstall it"
        ) from error
    return found


def all_passes() -> dict[str, type[Pass]]:
    """Import every pass, and return them by name."""
    return {name: pass_class(name) for name in pass_names()}
