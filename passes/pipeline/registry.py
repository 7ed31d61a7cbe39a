"""The names of the passes and their parts: tables from name to where the class lives, imported only
when asked for.

Other packages add passes by entry point: group ``pruneopt.passes``, the pass's name,
``module:Class``; and parts in the groups of `PART_GROUPS`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

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
]

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


def pass_names() -> tuple[str, ...]:
    """The names of all passes, built in first."""
    return tuple(_table())


def part_kinds() -> tuple[str, ...]:
    """Every kind of part."""
    return tuple(PART_GROUPS)


def part_names(kind: str) -> tuple[str, ...]:
    """The names of all parts of a kind, built in first."""
    return tuple(_parts(kind))


def pass_class(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UserError: no pass has this name, or the package that brings it does not work.
    """
    found = _load(_table(), name, "pass")
    if (
        not (isinstance(found, type) and issubclass(found, Pass))
        or found.__dict__.get("name") != name
    ):
        raise UserError(
            f"{_table()[name]}, registered as the pass {name!r}, is not a pass of that name"
        )
    return found


def part_class(kind: str, name: str) -> type[Part]:
    """The class of a part.

    Raises:
        UserError: no part of this kind has this name, or the package that brings it does not work.
    """
    found = _load(_parts(kind), name, kind)
    if (
        not (isinstance(found, type) and issubclass(found, Part))
        or getattr(found, "kind", None) != kind
        or found.__dict__.get("name") != name
    ):
        raise UserError(
            f"{_parts(kind)[name]}, registered as the {kind} {name!r}, is not a {kind} of that name"
        )
    return found


def _load(table: dict[str, str], name: str, what: str) -> type[Configured]:
    """The object that a table names."""
    place = table.get(name)
    if place is None:
        raise UserError(f"there is no {what} {name!r}: {did_you_mean(name, table)}")
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
    """Every pass by name; this imports them."""
    return {name: pass_class(name) for name in pass_names()}
