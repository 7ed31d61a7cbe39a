"""The names of the passes: a table from name to where its class lives, imported only when asked for.

Other packages add passes by entry point: group ``pruneopt.passes``, the pass's name, ``module:Class``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from pruneopt.errors import InternalError, UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.base import Pass

__all__ = ["GROUP", "all_passes", "pass_class", "pass_names"]

GROUP = "pruneopt.passes"

_BUILT_IN = {
    "couple": "pruneopt.passes.transform.stages:Couple",
    "cost": "pruneopt.passes.transform.stages:Cost",
    "prune": "pruneopt.passes.transform.prune:Prune",
    "uniform": "pruneopt.passes.transform.prune:Uniform",
    "l1": "pruneopt.passes.transform.prune:L1",
    "random": "pruneopt.passes.transform.prune:Random",
    "abn": "pruneopt.passes.search.abn:AdaptiveBN",
    "slice": "pruneopt.passes.transform.stages:Slice",
    "verify": "pruneopt.passes.transform.stages:Verify",
    "recalibrate": "pruneopt.passes.search.adaptive_bn:Recalibrate",
    "finetune": "pruneopt.passes.transform.stages:Finetune",
}


@cache
def _table() -> dict[str, str]:
    """Name -> ``module:Class`` of every pass, built in or installed; `UserError` where two packages claim a name."""
    return merge(_BUILT_IN, tuple(entry_points(group=GROUP)))


def merge(built_in: dict[str, str], plugins: tuple[EntryPoint, ...]) -> dict[str, str]:
    """The table of passes; `UserError` that names both origins where a name is taken twice."""
    table = dict(built_in)
    origin = dict.fromkeys(built_in, "pruneopt")
    for plugin in plugins:
        owner = plugin.dist.name if plugin.dist is not None else plugin.value
        # One package found twice on the path is no clash.
        if table.get(plugin.name, plugin.value) != plugin.value:
            raise UserError(
                f"two packages define a pass named {plugin.name!r}: {origin[plugin.name]} ({table[plugin.name]}) and "
                f"{owner} ({plugin.value}); uninstall or rename one"
            )
        table[plugin.name] = plugin.value
        origin[plugin.name] = owner
    return table


def pass_names() -> tuple[str, ...]:
    """The names of all passes, built in first."""
    return tuple(_table())


def pass_class(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UserError: no pass has this name, or the package that brings it does not work.
    """
    place = _table().get(name)
    if place is None:
        raise UserError(f"there is no pass {name!r}: {did_you_mean(name, _table())}")
    module, _, attribute = place.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if module.startswith("pruneopt."):
            raise InternalError(f"the pass {name} cannot be loaded from {place}: {error}") from error
        raise UserError(f"the pass {name} cannot be loaded from {place}: {error}; repair or uninstall it") from error
    if not (isinstance(found, type) and issubclass(found, Pass)) or found.__dict__.get("name") != name:
        raise UserError(f"{place}, registered as the pass {name!r}, is not a pass of that name")
    return found


def all_passes() -> dict[str, type[Pass]]:
    """Every pass by name; this imports them."""
    return {name: pass_class(name) for name in pass_names()}
