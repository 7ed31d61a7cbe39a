"""``compile FRONT --from-front K``: the options of a compile, filled in from the search that found
the front."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from pruneopt.errors import UserError
from pruneopt.manifest import check_listed
from pruneopt.models.source import is_library_network
from pruneopt.passes.front.front_file import FRONT
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.options.spec import pass_text
from pruneopt.reading import read_record

__all__ = ["RUN", "with_front"]

RUN = "run.json"


class Searched(Struct, frozen=True):
    """The options of a search that a compile takes over."""

    model: str
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    weights: str | None = None
    input: tuple[Annotated[int, Meta(gt=0)], ...] | None = None
    data: str | None = None


class SearchRun(Struct, frozen=True):
    """The part of a run record of a search that is read."""

    searched: Searched | None = None


def with_front(options: argparse.Namespace) -> None:
    """Put what was searched in the place of the folder that MODEL names, where ``--from-front`` is
    given.

    Model, weights, input shape, data and seed are those of the search unless they are given again.

    Raises:
        UserError: MODEL is no folder of a search, or the front has no such point.
    """
    if options.from_front is None:
        if options.original is not None:
            raise UserError("--original goes with --from-front: name the network as MODEL")
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
    found = read_record(folder / RUN, "run record", SearchRun).searched
    if found is None:
        raise UserError(
            f"{folder / RUN} does not say what was searched: give MODEL and --pass "
            f"'{pass_text(chosen)}'"
        )
    options.pass_text = pass_text(chosen)
    options.model = options.original or found.model
    if options.original is None and not is_library_network(found.model):
        raise UserError(
            f"{folder} was found for {found.model}, and no code runs because a file names it: give "
            "it yourself by --original"
        )
    _fill(options, found)


def _fill(options: argparse.Namespace, given: Searched) -> None:
    if options.weights is None and given.weights is not None:
        options.weights = Path(given.weights)
    if options.input is None:
        options.input = given.input
    if options.data is None:
        options.data = given.data
    if not _given(options, "--seed"):
        options.seed = given.seed


def _given(options: argparse.Namespace, flag: str) -> bool:
    """Return whether a flag is among the words of the command, even if with its default value."""
    return any(word.partition("=")[0] == flag for word in options.words)
