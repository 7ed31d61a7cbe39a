"""The names of parts: tables from name to where the class lives, imported only when asked for.

Other packages add parts by entry point, in the groups of `PART_GROUPS`: the part's name,
``module:Class``. A script, a notebook or a model file adds its own with `register_part`. How names
are found and registered is the same for passes, whose table is
`pruneopt.passes.pipeline.registry`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import TypeVar

from pruneopt.errors import InternalError, UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.options.option_types import Options, PartOptions

__all__ = [
    "PART_GROUPS",
    "describe",
    "find",
    "has_name",
    "known",
    "merge",
    "part_class",
    "part_kinds",
    "part_names",
    "register",
    "register_part",
]

P = TypeVar("P", bound=type[PartOptions])
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
        "nsga2": "pruneopt.passes.search.searchers.nsga2:NSGA2",
    },
    "evaluator": {
        "abn": "pruneopt.passes.search.evaluators.evaluator:AdaptiveStatistics",
        "reference": "pruneopt.passes.search.evaluators.evaluator:ReferenceStatistics",
        "stale": "pruneopt.passes.search.evaluators.evaluator:StaleStatistics",
        "finetune": "pruneopt.passes.search.evaluators.evaluator:ShortTraining",
        "pruning-net": "pruneopt.passes.search.pruning_net.generated_weights:PruningNetWeights",
    },
    "ranking": {
        "accuracy": "pruneopt.passes.search.rankings.ranking:Accuracy",
        "reward": "pruneopt.passes.search.rankings.ranking:Reward",
        "accuracy-under-latency": "pruneopt.passes.search.rankings.ranking:AccuracyUnderLatency",
        "function": "pruneopt.passes.search.rankings.function:Function",
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
def _parts(kind: str) -> dict[str, str]:
    """Return the same for the parts of a kind."""
    return merge(_PARTS[kind], tuple(entry_points(group=PART_GROUPS[kind])), kind)


def merge(
    built_in: dict[str, str], plugins: tuple[EntryPoint, ...], what: str = "pass"
) -> dict[str, str]:
    """Return a table with what is installed added; `UserError` for a name taken twice."""
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


_registered: dict[tuple[str, str], type[Options]] = {}
"""What this process registered: ``pass`` or the kind of a part, and the name -> the class."""


def register_part(kind: P) -> P:
    """Make a part known by its kind and name for the rest of the process, and return it; see
    `pruneopt.passes.pipeline.registry.register_pass`.

    Raises:
        UserError: no complete part with a name of its own, or a name that another one has.
    """
    what = getattr(kind, "kind", None)
    if what not in PART_GROUPS or not _is_part(kind, what) or isabstract(kind):
        raise UserError(
            f"{describe(kind)} cannot be registered: a part is a subclass of one of the kinds "
            f"({', '.join(PART_GROUPS)}) that sets name and summary and defines every abstract "
            "method"
        )
    register(what, _parts(what), kind)
    return kind


def _is_part(found: object, kind: str, name: str | None = None) -> bool:
    """Return whether an object is a part of a kind with a name of its own."""
    return (
        isinstance(found, type)
        and issubclass(found, PartOptions)
        and getattr(found, "kind", None) == kind
        and has_name(found, name)
    )


def has_name(found: type[Options], name: str | None) -> bool:
    """Return whether a class sets a name of its own: ``name``, where one is given."""
    own = found.__dict__.get("name")
    return own is not None and own == (name or own)


def describe(kind: object) -> str:
    """Return where a class is defined, ``module:Class``; the text of anything else."""
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
    return f"{module}:{name}" if isinstance(name, str) else repr(kind)


def register(what: str, installed: dict[str, str], kind: type[Options]) -> None:
    """Make a class known for the rest of the process, as a pass or as a kind of part.

    Raises:
        UserError: it has no summary, or its name is taken: in ``installed``, or by what was
            registered before at another place.
    """
    if not isinstance(getattr(kind, "summary", None), str):
        raise UserError(f"{describe(kind)} cannot be registered: it sets no summary")
    earlier = _registered.get((what, kind.name))
    taken = installed.get(kind.name) if earlier is None else describe(earlier)
    if taken not in (None, describe(kind)):
        raise UserError(
            f"two classes define a {what} named {kind.name!r}: {taken} and {describe(kind)}; "
            "rename one"
        )
    _registered[what, kind.name] = kind


def known(what: str, installed: dict[str, str]) -> dict[str, str]:
    """Return a table with what this process registered added."""
    added = {name: describe(kind) for (own, name), kind in _registered.items() if own == what}
    return {**installed, **added}


def part_kinds() -> tuple[str, ...]:
    """Return every kind of part."""
    return tuple(PART_GROUPS)


def part_names(kind: str) -> tuple[str, ...]:
    """Return the names of all parts of a kind, built in first."""
    return tuple(known(kind, _parts(kind)))


def part_class(kind: str, name: str) -> type[PartOptions]:
    """Return the class of a part.

    Raises:
        UserError: no part of this kind has this name, or the package that brings it does not work.
    """
    found = find(kind, name, _parts(kind))
    if not _is_part(found, kind, name):
        raise UserError(
            f"{_parts(kind)[name]}, registered as the {kind} {name!r}, is not a {kind} of that name"
        )
    assert issubclass(found, PartOptions)
    return found


def find(what: str, name: str, installed: dict[str, str]) -> type[Options]:
    """Return what a name stands for, registered or to be imported."""
    registered = _registered.get((what, name))
    if registered is not None:
        return registered
    if name not in installed:
        hint = did_you_mean(name, known(what, installed))
        raise UserError(f"there is no {what} {name!r}: {hint}")
    return _load(installed[name], name, what)


def _load(place: str, name: str, what: str) -> type[Options]:
    """Import the object at a place, ``module:Class``."""
    module, _, attribute = place.partition(":")
    try:
        found: type[Options] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if module.startswith("pruneopt."):
            raise InternalError(
                f"the {what} {name} cannot be loaded from {place}: {error}"
            ) from error
        raise UserError(
            f"the {what} {name} cannot be loaded from {place}: {error}; repair or uninstall it"
        ) from error
    return found
