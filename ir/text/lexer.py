"""The tokens of the text form, and errors that point into it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from pruneopt.errors import error_in_text

__all__ = ["Source", "Token", "TokenKind", "tokenize"]

TokenKind = Literal["name", "string", "number", "word", "punct", "end"]
_KINDS: dict[str, TokenKind] = {
    "name": "name",
    "string": "string",
    "number": "number",
    "word": "word",
    "punct": "punct",
}

_STRING = r'"(?:[^"\\\n]|\\.)*"'
_TOKEN = re.compile(
    rf"""
      (?P<space>  \s+ | //[^\n]* )
    | (?P<name>   [%@$#] (?: {_STRING} | [A-Za-z0-9_.]+ ) )
    | (?P<string> {_STRING} )
    | (?P<number> -? (?: inf\b | [0-9]+ (?: \.[0-9]+ )? (?: e[+-]?[0-9]+ )? ) )
    | (?P<word>   [A-Za-z_][A-Za-z0-9_.]* )
    | (?P<punct>  \+\+ | [-+*/~=:,()\[\]{{}}] )
    """,
    re.VERBOSE,
)


_NESTING = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text: its kind, its characters, and where it begins."""

    kind: TokenKind
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def __str__(self) -> str:
        return "the end of the text" if self.kind == "end" else f"'{self.text}'"


@dataclass(frozen=True, slots=True)
class Source:
    """A text and what to call it in messages."""

    text: str
    name: str

    def fail(self, start: int, end: int, message: str) -> NoReturn:
        """Raise the `UserError` that shows the characters from ``start`` to ``end``."""
        raise error_in_text(self.text, self.name, start, end, message)


DEPTH = 64
"""How deep brackets nest at most: far beyond what networks return, far from Python's own limit."""
INTEGERS = range(-(2**63), 2**63)


def tokenize(source: Source) -> list[Token]:
    """Split a text into tokens, with one of kind ``end`` behind them."""
    tokens: list[Token] = []
    depth = 0
    text, position = source.text, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            _fail_at(source, position)
        if match.lastgroup in _KINDS:
            tokens.append(Token(_KINDS[match.lastgroup], match.group(), position))
            _check(source, tokens[-1])
            depth += _NESTING.get(match.group(), 0)
            if depth > DEPTH:
                source.fail(position, position + 1, f"brackets nest deeper than {DEPTH} levels")
        position = match.end()
    tokens.append(Token("end", "", len(text.rstrip())))
    return tokens


def _fail_at(source: Source, position: int) -> NoReturn:
    char = source.text[position]
    if char == '"' or (char in "%@$#" and source.text[position + 1 : position + 2] == '"'):
        line = source.text[position:].split("\n", 1)[0]
        source.fail(position, position + len(line), "this string has no closing quote")
    if char in "%@$#":
        source.fail(position, position + 1, f"a name must follow '{char}'")
    source.fail(position, position + 1, f"unexpected character {char!r}")


def _check(source: Source, token: Token) -> None:
    """Refuse what the pattern lets through: a wrong escape, a number with letters behind it."""
    if token.text.endswith('"'):
        try:
            json.loads(token.text.lstrip("%@$#")).encode()
        except json.JSONDecodeError as error:
            offset = token.text.index('"') + error.pos
            source.fail(token.start + offset, token.end, f"bad string: {error.msg.lower()}")
        except UnicodeEncodeError:
            source.fail(token.start, token.end, "bad string: half of a character")
    elif token.kind == "number" and (rest := re.compile(r"[\w.]+").match(source.text, token.end)):
        source.fail(
            token.start, rest.end(), f"bad number '{source.text[token.start : rest.end()]}'"
        )
    elif token.kind == "number" and _is_huge(token.text):
        source.fail(token.start, token.end, "a whole number beyond 64 bits")


def _is_huge(number: str) -> bool:
    if not number.lstrip("-").isdigit():
        return False
    return len(number) > 20 or int(number) not in INTEGERS
