"""The lists of networks of the coverage benchmark: text files in benchmarks/networks/, one spec a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["LISTS", "named"]

FOLDER = Path(__file__).parent / "networks"
LISTS = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def named(names: Sequence[str]) -> list[str]:
    """The specs that names stand for: a list's name, or a spec; every list for none. Each once, in order.

    A relative model file in a list is looked for beside the list.
    """
    found: dict[str, None] = {}
    for name in names or LISTS:
        found |= dict.fromkeys(_read(name) if name in LISTS else [name])
    return list(found)


def _read(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    specs = [line.partition("#")[0].strip() for line in lines]
    return [str(FOLDER / spec) if ".py" in spec else spec for spec in specs if spec]
