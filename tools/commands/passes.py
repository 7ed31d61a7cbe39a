"""``pruneopt passes``: every pass, and every part of one, with its options, read off the classes
that run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.models.user_code import UserFile
from pruneopt.passes.options.configured import Part
from pruneopt.passes.options.option_types import Options, option_fields
from pruneopt.passes.options.registry import part_class, part_kinds, part_names
from pruneopt.passes.options.spec import option_type, pass_text
from pruneopt.passes.pipeline.registry import pass_class, pass_names

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print passes and parts, as text or JSON."""
    kinds = [kind for name in options.names for kind in _named(name)] or _everything()
    if options.json:
        print(json.dumps([_pass_data(kind) for kind in kinds], indent=2))
        return 0
    print("\n\n".join("\n".join(_lines(kind)) for kind in kinds))
    if not options.names:
        print(
            "\nA pass is given as NAME{key=value key=value}, and a part as the value of an option: "
            "abn{searcher=evolution{population=20}}.\n`pruneopt passes NAME` shows a pass, a part, "
            "or a kind of part."
        )
    return 0


def _named(name: str) -> list[type[Options]]:
    """Return the pass of a name, every part of a name, all parts of a kind, or what a file of the
    user registers."""
    if name.endswith(".py"):
        return _of_file(name)
    if name in part_kinds():
        return [part_class(name, part) for part in part_names(name)]
    found: list[type[Options]] = [pass_class(name)] if name in pass_names() else []
    found += [part_class(kind, name) for kind in part_kinds() if name in part_names(kind)]
    if not found:
        known = [
            *pass_names(),
            *part_kinds(),
            *(part for kind in part_kinds() for part in part_names(kind)),
        ]
        raise UserError(f"there is no pass {name!r}: {did_you_mean(name, known)}")
    return found


def _everything() -> list[type[Options]]:
    parts = [part for kind in part_kinds() for part in _named(kind)]
    return [*map(pass_class, pass_names()), *parts]


def _of_file(name: str) -> list[type[Options]]:
    """Run a model file, and return the passes and parts that are there only since."""
    before = _everything()
    UserFile(Path(name))
    found = [kind for kind in _everything() if kind not in before]
    if not found:
        raise UserError(
            f"{name} registers no pass and no part: put @register_pass or @register_part of "
            "pruneopt.extend above a class"
        )
    return found


def _pass_data(kind: type[Options]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {
        "name": kind.name,
        "kind": kind.kind if issubclass(kind, Part) else "pass",
        "summary": kind.summary,
        "options": [
            {
                "name": field.name.replace("_", "-"),
                "type": option_type(hints[field.name]),
                "default": _plain(field.default),
                "required": field.default is dataclasses.MISSING,
                "help": field.metadata.get("help", ""),
            }
            for field in option_fields(kind)
        ],
    }


def _lines(kind: type[Options]) -> Iterator[str]:
    data = _pass_data(kind)
    yield (
        f"{data['name']}{'' if data['kind'] == 'pass' else ' (' + data['kind'] + ')'}: "
        f"{data['summary']}"
    )
    for option in data["options"]:
        default = "required" if option["required"] else _default(option["default"])
        head = f"{option['name']} ({option['type']}, {default})"
        yield (
            f"    {head:44} {option['help']}"
            if len(head) < 44
            else f"    {head}\n    {'':44} {option['help']}"
        )


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(default: object) -> object:
    """A default as JSON can hold it."""
    if default is dataclasses.MISSING:
        return None
    return pass_text(default) if isinstance(default, Part) else default
