"""``compile FRONT --from-front K``: the options of a compile, filled in from the search that found
the front."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError
from pruneopt.manifest import check_listed
from pruneopt.passes.front.front_file import FRONT
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pns.reader import read_json

__all__ = ["RUN", "with_front"]

RUN = "run.json"


def with_front(options: argparse.Namespace) -> None:
    """Put what was searched in the place of the folder that MODEL names, where ``--from-front`` is
    given.

    Model, weights, input shape, data and seed are those of the search unless they are given again.

    Raises:
        UserError: MODEL is no folder of a search, or the front has no such point.
    """
    if options.from_front is None:
        return
    if _given(options, "--pass"):
        raise UserError("--from-front decides which channels stay: leave --pass out")
    folder = Path(options.model)
    if not (folder / FRONT).is_file():
        raise UserError(
            f"--from-front takes the folder of a search in the place of MODEL, and {folder} holds "
            f"no {FRONT}: "
            "`pruneopt search` writes one"
        )
    chosen = FrontPoint(str(folder), options.from_front)
    check_listed(folder / RUN)
    searched = read_json(folder / RUN, "run record")
    given = searched.get("searched") if isinstance(searched, dict) else None
    if not isinstance(given, dict):
        raise UserError(
            f"{folder / RUN} does not say what was searched: give MODEL and --pass "
            f"'{pass_text(chosen)}'"
        )
    options.pass_text = pass_text(chosen)
    options.model = given["model"]
    _fill(options, given)


def _fill(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if options.weights is None and given["weights"] is not None:
        options.weights = Path(given["weights"])
    if options.input is None and given["input"] is not None:
        options.input = tuple(given["input"])
    if options.data is None:
        options.data = given["data"]
    if not _given(options, "--seed"):
        options.seed = given["seed"]


def _given(options: argparse.Namespace, flag: str) -> bool:
    """Return whether a flag is among the words of the command, even if with its default value."""
    return any(word.partition("=")[0] == flag for word in options.words)
