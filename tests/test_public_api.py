"""The public names: each is where the table says, and none changes without a word in the changelog.

`tests/public_api.txt` records every name with its signature and stability. After a change of it,
say in the top section of CHANGELOG.md what changed for users, and put the new digest there:

    PYTHONPATH=src python tests/test_public_api.py
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pruneopt.public_api import PROVISIONAL, STABLE, places

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "public_api.txt"
FRONTS = tuple(STABLE)
LAZY = ("pruneopt", "pruneopt.extend")


class Plain:
    """An annotation that a signature shows as it is written in the source."""

    def __init__(self, annotation: object) -> None:
        self.text = annotation if isinstance(annotation, str) else shown(annotation)

    def __repr__(self) -> str:
        return self.text


def shown(value: object) -> str:
    """A type or a default as text, without addresses and without the modules that names live in."""
    text = value.__name__ if inspect.isfunction(value) else inspect.formatannotation(value)
    return re.sub(r"\bpruneopt(\.\w+)*\.(?=\w)", "", text)


def signature_of(item: Any) -> str:
    """A signature in the words of the source; errors and protocols have none of their own."""
    if isinstance(item, type) and (issubclass(item, Exception) or is_protocol(item)):
        return ""
    found = inspect.signature(item)
    empty = inspect.Parameter.empty
    parameters = [
        each.replace(
            annotation=empty if each.annotation is empty else Plain(each.annotation),
            default=empty if each.default is empty else Plain(shown_default(each.default)),
        )
        for each in found.parameters.values()
    ]
    result = found.return_annotation
    return str(
        found.replace(
            parameters=parameters,
            return_annotation=empty if result is empty else Plain(result),
        )
    )


def is_protocol(kind: type) -> bool:
    return bool(vars(kind).get("_is_protocol"))


def shown_default(value: object) -> str:
    return value.__name__ if inspect.isfunction(value) else re.sub(r" at 0x\w+", "", repr(value))


def members(kind: type) -> Iterator[str]:
    """The public methods, properties and class attributes of a class; those of bases that are
    public themselves stand there."""
    public = {name for front in FRONTS for name in places(front)}
    fields = [item.name for item in dataclasses.fields(kind)] if is_dataclass(kind) else []
    seen: dict[str, str] = {}
    for base in kind.__mro__:
        ours = base.__module__.startswith("pruneopt") and base.__name__ not in public
        if base is not kind and not ours:
            continue
        for name, annotation in inspect.get_annotations(base).items():
            seen.setdefault(name, f".{name}: {Plain(annotation)}")
        for name, item in vars(base).items():
            seen.setdefault(name, member(name, item))
    listed = sorted(
        name
        for name in seen
        if name not in fields and (name == "__call__" or not name.startswith("_"))
    )
    yield from (seen[name] for name in listed if seen[name])


def member(name: str, item: Any) -> str:
    """One attribute of a class as a line; nothing for plain values, whose annotations say more."""
    if isinstance(item, classmethod | staticmethod):
        return f".{name}{signature_of(item.__func__)}"
    if inspect.isfunction(item):
        return f".{name}{signature_of(item)}"
    found = getattr(item, "fget", None) or getattr(item, "func", None)  # cached_property
    return f".{name} -> {Plain(inspect.signature(found).return_annotation)}" if found else ""


def kind_of(item: object) -> str:
    if inspect.isclass(item) and hasattr(item, "__mro__"):
        return "class"
    return "function" if inspect.isfunction(item) else "type"


def lines() -> Iterator[str]:
    for front in FRONTS:
        for stability, table in (("stable", STABLE), ("provisional", PROVISIONAL)):
            for place in sorted(table[front], key=lambda place: place.partition(":")[2]):
                name = place.partition(":")[2]
                item = getattr(import_module(front), name)
                kind = kind_of(item)
                form = f" = {shown(item)}" if kind == "type" else signature_of(item)
                yield f"{stability:11}  {kind:8}  {front}.{name}{form}"
                if kind == "class":
                    yield from (f"{'':25}{line}" for line in members(item))


def text() -> str:
    return "\n".join(lines()) + "\n"


def digest(record: str) -> str:
    return hashlib.sha256(record.encode()).hexdigest()[:12]


def top_section() -> str:
    """The newest version's part of the changelog."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## [")[1]


def test_the_record_has_every_public_name_and_signature() -> None:
    recorded = RECORD.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        recorded.splitlines(), text().splitlines(), "recorded", "public now", lineterm="", n=0
    )
    assert recorded == text(), (
        "\n".join(difference) + f"\nif that is meant: PYTHONPATH=src python {RECORD.parent.name}/"
        f"{Path(__file__).name}, and say in the changelog what changes for users"
    )


def test_the_changelog_speaks_of_the_recorded_names() -> None:
    wanted = digest(RECORD.read_text(encoding="utf-8"))
    assert f"`{wanted}`" in top_section(), (
        "the public names changed: say in the top section of CHANGELOG.md what changed for users, "
        f"and write `{wanted}` there as the digest of tests/public_api.txt"
    )


@pytest.mark.parametrize("front", LAZY)
def test_type_checkers_see_what_the_table_says(front: str) -> None:
    file = ROOT / "src" / Path(*front.split("."))
    source = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    imported = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == places("pruneopt") | places(front)


@pytest.mark.parametrize("front", FRONTS)
def test_every_name_resolves_and_is_listed(front: str) -> None:
    module = import_module(front)
    for name, place in places(front).items():
        assert getattr(module, name) is getattr(import_module(place.partition(":")[0]), name)
    assert {*places(front)} <= {*module.__all__} & {*dir(module)}
    listed = [place for table in (STABLE, PROVISIONAL) for part in table.values() for place in part]
    assert len(listed) == len(set(listed)), "a name stands in the table twice"


@pytest.mark.parametrize("front", LAZY)
def test_unknown_names_are_attribute_errors(front: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{front}' has no attribute 'capturre'"):
        import_module(front).capturre  # noqa: B018


if __name__ == "__main__":
    RECORD.write_text(text(), encoding="utf-8", newline="\n")
    print(f"digest for the changelog: `{digest(text())}`")
