"""Breaking long lines of generated Python inside their brackets."""

from __future__ import annotations

import re

__all__ = ["wrap"]

WIDTH = 110
CLOSING = {"(": ")", "[": "]", "{": "}"}
BRACKET = re.compile(r"[()\[\]{}]")
STRING = re.compile(r""""(?:\\.?|[^"\\])*"?|'(?:\\.?|[^'\\])*'?""")


def wrap(line: str, indent: int, end: str = "") -> str:
    """Return a statement, indented; a long one continues inside its last outermost bracket.

    What is inside goes on one line of its own if it fits there, else one item to a line.
    """
    text = " " * indent + line + end
    if len(text) <= WIDTH:
        return text
    opening = _last_bracket(line)
    if opening is None:
        return text
    start, stop = opening, _closing(line, opening)
    if (
        line[start + 1] in CLOSING and _closing(line, start + 1) == stop - 1
    ):  # f([...]): open both together
        start, stop = start + 1, stop - 1
    head, inner, tail = line[: start + 1], line[start + 1 : stop], line[stop:]
    single = " " * (indent + 4) + inner
    items = _items(inner)
    if len(single) <= WIDTH or len(items) < 2:
        body = single if len(single) <= WIDTH else wrap(inner, indent + 4)
    else:
        body = "\n".join(wrap(item, indent + 4, ",") for item in items)
    return f"{' ' * indent}{head}\n{body}\n{' ' * indent}{tail}{end}"


def _plain(text: str) -> str:
    """Return the text with the characters of its strings blanked out."""
    if '"' not in text and "'" not in text:
        return text
    return STRING.sub(lambda found: "_" * len(found.group()), text)


def _closing(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one at ``start``."""
    depth = 0
    for mark in BRACKET.finditer(_plain(text), start):
        depth += 1 if mark.group() in CLOSING else -1
        if depth == 0:
            return mark.start()
    return len(text)


def _last_bracket(text: str) -> int | None:
    """Find the last bracket that opens at the outermost level with something in it."""
    depth, found = 0, None
    plain = _plain(text)
    for mark in BRACKET.finditer(plain):
        index, char = mark.start(), mark.group()
        if char not in CLOSING:
            depth -= 1
            continue
        if depth == 0 and plain[index + 1 : index + 2] != CLOSING[char]:
            found = index
        depth += 1
    return found


def _items(text: str) -> list[str]:
    """Split the text at its outermost commas."""
    items, depth, start = [], 0, 0
    for mark in re.finditer(r"[()\[\]{},]", _plain(text)):
        index, char = mark.start(), mark.group()
        if char != ",":
            depth += 1 if char in CLOSING else -1
        elif depth == 0:
            items.append(text[start:index].strip())
            start = index + 1
    return [item for item in (*items, text[start:].strip()) if item]
