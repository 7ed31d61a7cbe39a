"""The syntax of pipelines: names, keys and values of a text, each with its place for errors.

What names and values mean is `pruneopt.passes.options.spec`'s to say; so is the syntax itself, in
words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from pruneopt.errors import error_in_text

__all__ = ["Item", "Option", "Reader", "Source", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Option:
    """``key=value`` as written; ``value`` is None for a bare key."""

    key: str
    key_span: Span
    value: str | None
    value_span: Span


@dataclass(frozen=True, slots=True)
class Item:
    """A pass or part as written."""

    name: str
    span: Span
    options: tuple[Option, ...]


class Source:
    """The text of a pipeline, and errors that point into it."""

    def __init__(self, text: str, what: str = "pipeline") -> None:
        self.text, self.what = text, what

    def fail(self, span: Span, message: str, note: str = "") -> NoReturn:
        """Raise the error for a span of the text."""
        raise error_in_text(self.text, self.what, span.start, span.stop, message, note)


class Reader:
    """Splits a pipeline into names, keys and values.

    Args:
        source: the text, to be read from ``start`` on.
        what: what the names are of (``pass``, ``searcher``), for errors.
        note: what such names are, for the error where one is missing.
    """

    def __init__(self, source: Source, start: int = 0, what: str = "pass", note: str = "") -> None:
        self.source, self.text, self.at, self.what, self.note = (
            source,
            source.text,
            start,
            what,
            note,
        )

    def only(self, stop: int) -> Item:
        """Return the one item that ends at ``stop``."""
        self._skip_space()
        item = self._item()
        self._skip_space()
        if self.at < stop:
            self._fail_here(f"expected nothing more after {item.name}, not {self.text[self.at]!r}")
        return item

    def items(self) -> list[Item]:
        found = []
        while True:
            self._skip_space()
            found.append(self._item())
            self._skip_space()
            if self.at == len(self.text):
                return found
            if self.text[self.at] != ",":
                self._fail_here(
                    f"expected ',' or the end after the pass {found[-1].name}, not "
                    f"{self.text[self.at]!r}"
                )
            self.at += 1

    def _item(self) -> Item:
        name, span = self._word(",{} \t\n")
        if not name:
            ends = self.at == len(self.text) or self.text[self.at] == ","
            article = "an" if self.what[0] in "aeiou" else "a"
            missing = f"{article} {self.what} is missing here"
            wrong = (
                ""
                if ends
                else f"expected the name of {article} {self.what}, not {self.text[self.at]!r}"
            )
            self._fail_here(wrong or missing, self.note)
        options: list[Option] = []
        self._skip_space()
        if self.at < len(self.text) and self.text[self.at] == "{":
            opened = self.at
            self.at += 1
            self._skip_space()
            while not self._closes(opened):
                options.append(self._option(name))
                self._skip_space()
        return Item(name, span, tuple(options))

    def _closes(self, opened: int) -> bool:
        if self.at == len(self.text):
            self.source.fail(
                Span(opened, opened + 1), "this brace is never closed", "options end with '}'"
            )
        if self.text[self.at] == "}":
            self.at += 1
            return True
        return False

    def _option(self, name: str) -> Option:
        key, span = self._word("={}, \t\n")
        if not key:
            note = "options are written key=value, with spaces between"
            self._fail_here(f"expected an option of {name}, not {self.text[self.at]!r}", note)
        if self.at == len(self.text) or self.text[self.at] != "=":
            return Option(key, span, None, span)
        self.at += 1
        start = self.at
        self._skip_value()
        if self.at == start:
            self.source.fail(Span(span.start, start), f"the option {key!r} has no value behind '='")
        return Option(key, span, self.text[start : self.at], Span(start, self.at))

    def _skip_value(self) -> None:
        """Move to the end of a value: a space or brace outside its own braces and quotes."""
        depth, opened = 0, self.at
        if self.text.startswith("[", self.at):
            self._skip_bracket()
        while self.at < len(self.text):
            mark = self.text[self.at]
            if mark == '"':
                self._skip_quoted()
                continue
            if depth == 0 and (mark.isspace() or mark == "}"):
                return
            if mark == "{":
                depth, opened = depth + 1, self.at if depth == 0 else opened
            elif mark == "}":
                depth -= 1
            self.at += 1
        if depth:
            self.source.fail(Span(opened, opened + 1), "this brace is never closed")

    def _skip_bracket(self) -> None:
        """Move behind a list in brackets at the start of a value: it may hold spaces."""
        closed = self.text.find("]", self.at)
        if closed < 0:
            self.source.fail(Span(self.at, self.at + 1), "this bracket is never closed")
        self.at = closed + 1

    def _skip_quoted(self) -> None:
        start = self.at
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.at += 2 if self.text[self.at] == "\\" else 1
        if self.at >= len(self.text):
            self.source.fail(Span(start, start + 1), "this quote is never closed")
        self.at += 1

    def _word(self, ends: str) -> tuple[str, Span]:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at], Span(start, self.at)

    def _skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _fail_here(self, message: str, note: str = "") -> NoReturn:
        self.source.fail(Span(self.at, self.at + 1), message, note)
