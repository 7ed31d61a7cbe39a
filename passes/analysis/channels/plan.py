"""Plans as files: which units of every group stay.

With the original network, a plan is enough to rebuild the cut one.

The file is JSON: ``{"format": "pruneopt-plan", "version": 1, "network": ..., "groups": {name:
{"width": 64, "keep": [[0, 8], [12, 16]]}}, "meta": {...}}``. Ranges are half-open; ``width`` is the
group's width in the original.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pruneopt.errors import UserError
from pruneopt.files import write_json
from pruneopt.ir.types import ranges_of
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling, Group, Plan, check_kept
from pruneopt.reading import read_record

__all__ = ["FORMAT", "load_plan", "save_plan"]

FORMAT = "pruneopt-plan"
VERSION = 1


def save_plan(
    path: str | os.PathLike[str],
    plan: Plan,
    coupling: Coupling,
    meta: Mapping[str, Any] | None = None,
    *,
    dropped: Mapping[str, str] | None = None,
) -> None:
    """Write a plan, whole or not at all.

    ``meta`` is anything JSON that belongs with it (budgets, seed, scores).

    ``dropped``: whole blocks that the network has no more, by name, with the value that was the sum
    of each: the plan fits no network that still has them.

    Raises:
        UserError: the plan breaks a constraint of the coupling, or the file cannot be written.
    """
    coupling.kept_units(plan)
    groups = {
        name: {
            "width": coupling.group(name).width,
            "keep": [list(pair) for pair in ranges_of(np.sort(kept).tolist())],
        }
        for name, kept in plan.items()
    }
    head = {"format": FORMAT, "version": VERSION, "network": coupling.graph.name}
    blocks = {"dropped": dict(dropped)} if dropped else {}
    write_json(path, {**head, **blocks, "groups": groups, "meta": dict(meta or {})})


def load_plan(path: str | os.PathLike[str], coupling: Coupling) -> dict[str, np.ndarray]:
    """Return the plan in a file, checked against the groups of a network.

    Groups that it does not name keep all.

    Raises:
        UserError: no such file, not a plan, or a plan of another network.
    """
    data = _read(Path(path))
    values = {value.name for value in coupling.graph.values}
    blocks = data.get("dropped", {})
    if not isinstance(blocks, dict) or not all(isinstance(at, str) for at in blocks.values()):
        raise UserError(f"{path}: dropped blocks must be written as {{name: value}}")
    still = [name for name, total in blocks.items() if total in values]
    if still:
        options = " ".join(f"blocks={name}" for name in still)
        raise UserError(
            f"{path}: the plan is for a network without the blocks {', '.join(still)}: drop them "
            "before couple, with "
            f"drop-blocks{{{options}}}"
        )
    plan: dict[str, np.ndarray] = {}
    names = [group.name for group in coupling.groups]
    for name, entry in data["groups"].items():
        if name not in names:
            raise UserError(
                f"{path}: the plan names the channel group {name!r}, which {coupling.graph.name} "
                "does not have "
                f"({did_you_mean(name, names)}); it belongs to another network"
            )
        plan[name] = _kept(Path(path), coupling.group(name), entry)
    return plan


def _read(path: Path) -> dict[str, Any]:
    data = read_record(path, "plan", Any)
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or not isinstance(data.get("groups"), dict)
    ):
        raise UserError(f'{path} is no plan: it lacks "format": "{FORMAT}" or its groups')
    if data.get("version") != VERSION:
        raise UserError(
            f"{path} is a plan of version {data.get('version')}; this pruneopt reads version "
            f"{VERSION}"
        )
    return data


def _kept(path: Path, group: Group, entry: Any) -> np.ndarray:
    """Return the kept units of one group, from its entry in the file."""
    if not isinstance(entry, dict) or not isinstance(entry.get("keep"), list):
        form = '{"width": ..., "keep": [[start, stop], ...]}'
        raise UserError(f"{path}: group {group.name} must be written as {form}")
    if entry.get("width") != group.width:
        raise UserError(
            f"{path}: the plan is for a group {group.name} of width {entry.get('width')}, here it "
            f"has {group.width}; "
            "it belongs to another network"
        )
    end = 0
    for pair in entry["keep"]:
        whole = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(number) is int for number in pair)
        )
        if not whole or not end <= pair[0] < pair[1] <= group.width:
            raise UserError(
                f"{path}: group {group.name} keeps {pair}, which is no range [start, stop) in "
                "ascending order inside "
                f"its {group.width} channels"
            )
        end = pair[1]
    ranges = [np.arange(start, stop, dtype=np.int64) for start, stop in entry["keep"]]
    kept = np.concatenate([np.zeros(0, dtype=np.int64), *ranges])
    try:
        check_kept(group, kept)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return kept
