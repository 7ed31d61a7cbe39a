"""``pruneopt passes``: every pass with its options, read off the classes that run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

from pruneopt.passes.base import Pass, option_fields
from pruneopt.passes.registry import pass_class, pass_names
from pruneopt.passes.spec import option_type

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print the passes, as text or JSON."""
    kinds = [pass_class(name) for name in options.names or pass_names()]
    if options.json:
        print(json.dumps([_pass_data(kind) for kind in kinds], indent=2))
        return 0
    print("\n\n".join("\n".join(_lines(kind)) for kind in kinds))
    if not options.names:
        print("\nA pass is given as NAME{key=value key=value}; `pruneopt passes NAME` shows it alone.")
    return 0


def _pass_data(kind: type[Pass]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {
        "name": kind.name,
        "summary": kind.summary,
        "options": [
            {
                "name": field.name.replace("_", "-"),
                "type": option_type(hints[field.name]),
                "default": None if field.default is dataclasses.MISSING else field.default,
                "required": field.default is dataclasses.MISSING,
                "help": field.metadata.get("help", ""),
            }
            for field in option_fields(kind)
        ],
    }


def _lines(kind: type[Pass]) -> Iterator[str]:
    data = _pass_data(kind)
    yield f"{data['name']}: {data['summary']}"
    for option in data["options"]:
        default = "required" if option["required"] else _default(option["default"])
        head = f"{option['name']} ({option['type']}, {default})"
        yield f"    {head:44} {option['help']}" if len(head) < 44 else f"    {head}\n    {'':44} {option['help']}"


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
