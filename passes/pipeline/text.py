"""Pipelines as text: ``couple,prune{criterion=l2 budget=50%FLOPs round-to=8},slice``, and back.

How options are written: `pruneopt.passes.options.spec`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pruneopt.models.spec import did_you_mean
from pruneopt.passes.options.spec import build, pass_text
from pruneopt.passes.options.spec_reader import Item, Reader, Source
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import pass_class, pass_names

__all__ = ["parse_pipeline", "pipeline_text"]


def parse_pipeline(text: str) -> list[Pass]:
    """Return the passes that a pipeline string names, with their options.

    Raises:
        UserError: ``pipeline:1:COLUMN: error: ...`` with the line, carets and a note, for anything
            that is wrong.
    """
    source = Source(text)
    return [_build_pass(source, item) for item in Reader(source, note=_pass_note()).items()]


def pipeline_text(passes: Iterable[Pass]) -> str:
    """Return the string that `parse_pipeline` reads back, without options at their defaults."""
    return ",".join(map(pass_text, passes))


def _build_pass(source: Source, item: Item) -> Pass:
    if item.name not in pass_names():
        source.fail(
            item.span, f"there is no pass {item.name!r}", did_you_mean(item.name, pass_names())
        )
    return build(source, item, pass_class(item.name))


def _pass_note() -> str:
    return f"passes are {', '.join(pass_names())}"
