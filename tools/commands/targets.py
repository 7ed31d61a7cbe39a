"""``pruneopt targets``: the runtimes that this machine offers, and why it does not offer the
others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pruneopt.passes.targets.target import Target, parse_target, target_classes
from pruneopt.tools.report.text import table

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """List the targets, as text or JSON."""
    found = [_described(target) for target in _listed()]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    here = [(item["target"], item["runtime"]) for item in found if item["reason"] is None]
    missing = [(item["target"], item["reason"]) for item in found if item["reason"] is not None]
    if here:
        print(table([("offered", "runtime"), *here], text_columns=(0, 1)))
    if missing:
        print()
        print(table([("not offered", "why"), *missing], text_columns=(0, 1)))
    print(
        "\n`pruneopt passes target` lists their options, which are part of their names: "
        "ort-cpu{threads=2 batch=8}."
    )
    return 0


def _listed() -> Iterator[Target]:
    """Yield every target with its defaults, and again in each of its modes."""
    for kind in target_classes():
        mode = get_type_hints(kind).get("mode")
        choices = get_args(mode) if get_origin(mode) is Literal else ()
        made = [kind(), *(parse_target(f"{kind.name}{{mode={choice}}}") for choice in choices)]
        yield from dict.fromkeys(made)


def _described(target: Target) -> dict[str, Any]:
    reason = target.unavailable()
    return {
        "target": str(target),
        "reason": reason,
        "runtime": target.runtime() if reason is None else None,
    }
