"""Pipelines as text: ``couple,prune{criterion=l2 budget=50%FLOPs round-to=8},slice`` to passes, and back.

Names and keys are kebab-case. A value ends at a space or at the closing brace of its pass; braces inside a value are
its own (``4ms@ort-cpu{threads=2}``), and a value in double quotes is a JSON string. What a value means is decided by
the type of the pass's field: ``int``, ``float``, ``bool``, ``str``, a choice of words, or a list of these, written with
commas, by repeating the key, or both; ``none`` is nothing, or the empty list. A key without a value means ``true``. The
value of a part is written as a pass is: ``abn{searcher=evolution{population=20}}``. An option that only one part of a
pass has may be written on the pass: ``abn{searcher=evolution population=20}``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.base import Configured, Part, Pass, option_fields, part_kind
from pruneopt.passes.registry import part_class, part_names, pass_class, pass_names

__all__ = ["option_type", "parse_part", "parse_pipeline", "pass_text", "pipeline_text"]

P = TypeVar("P", bound=Configured)


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Option:
    """``key=value`` as written; ``value`` is None for a bare key."""

    key: str
    key_span: _Span
    value: str | None
    value_span: _Span


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    span: _Span
    options: tuple[_Option, ...]


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that a pipeline string names, with their options.

    Raises:
        UserError: ``pipeline:1:COLUMN: error: ...`` with the line, carets and a note, for anything that is wrong.
    """
    source = _Source(text)
    return [_build_pass(source, item) for item in _Reader(source).items()]


def parse_part(kind: type[Part], text: str) -> Part:
    """The part of a kind that a text such as ``evolution{population=20}`` names.

    Raises:
        UserError: ``KIND:1:COLUMN: error: ...`` as `parse_pipeline` does.
    """
    source = _Source(text, kind.kind)
    return _build_part(source, _Reader(source, what=kind.kind).only(len(text)), kind)


def pipeline_text(passes: Iterable[Pass]) -> str:
    """The string that `parse_pipeline` reads back to equal passes; options at their defaults are left out."""
    return ",".join(map(pass_text, passes))


def pass_text(step: Configured) -> str:
    """One pass, or part, as text: ``prune{budget=50%FLOPs round-to=8}``."""
    words = []
    hints = get_type_hints(type(step))
    for item in option_fields(type(step)):
        value = getattr(step, item.name)
        if item.default is dataclasses.MISSING or value != item.default:
            words.append(_option_text(item.name.replace("_", "-"), value, hints[item.name]))
    return step.name + (f"{{{' '.join(words)}}}" if words else "")


def option_type(hint: Any) -> str:
    """A field's type in the user's words: ``int``, ``list of str``, ``l1|l2``."""
    hint, _ = _without_none(hint)
    kind = part_kind(hint)
    if kind is not None:
        return "|".join(part_names(kind.kind))
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return f"list of {option_type(get_args(hint)[0])}"
    return str(hint.__name__)


# Text to passes


class _Source:
    """The text of a pipeline, and errors that point into it."""

    def __init__(self, text: str, what: str = "pipeline") -> None:
        self.text, self.what = text, what

    def fail(self, span: _Span, message: str, note: str = "") -> NoReturn:
        """Raise the error for a span of the text."""
        start = self.text.rfind("\n", 0, span.start) + 1
        end = self.text.find("\n", start)
        line = self.text[start:] if end < 0 else self.text[start:end]
        row, column = self.text.count("\n", 0, span.start) + 1, span.start - start
        width = max(1, min(span.stop, start + len(line)) - span.start)
        # A tab must move the caret as far as it moves the text.
        lead = "".join("\t" if mark == "\t" else " " for mark in line[:column])
        shown = [f"{self.what}:{row}:{column + 1}: error: {message}", f"  {line}", f"  {lead}{'^' * width}"]
        raise UserError("\n".join([*shown, f"  note: {note}"] if note else shown))


class _Reader:
    """Splits a pipeline into names, keys and values."""

    def __init__(self, source: _Source, start: int = 0, what: str = "pass") -> None:
        self.source, self.text, self.at, self.what = source, source.text, start, what

    def only(self, stop: int) -> _Item:
        """The one item that ends at ``stop``."""
        self._skip_space()
        item = self._item()
        self._skip_space()
        if self.at < stop:
            self._fail_here(f"expected nothing more after {item.name}, not {self.text[self.at]!r}")
        return item

    def items(self) -> list[_Item]:
        found = []
        while True:
            self._skip_space()
            found.append(self._item())
            self._skip_space()
            if self.at == len(self.text):
                return found
            if self.text[self.at] != ",":
                self._fail_here(f"expected ',' or the end after the pass {found[-1].name}, not {self.text[self.at]!r}")
            self.at += 1

    def _item(self) -> _Item:
        name, span = self._word(",{} \t\n")
        if not name:
            ends = self.at == len(self.text) or self.text[self.at] == ","
            article = "an" if self.what[0] in "aeiou" else "a"
            missing = f"{article} {self.what} is missing here"
            wrong = "" if ends else f"expected the name of {article} {self.what}, not {self.text[self.at]!r}"
            self._fail_here(wrong or missing, _pass_note() if self.what == "pass" else "")
        options: list[_Option] = []
        self._skip_space()
        if self.at < len(self.text) and self.text[self.at] == "{":
            opened = self.at
            self.at += 1
            self._skip_space()
            while not self._closes(opened):
                options.append(self._option(name))
                self._skip_space()
        return _Item(name, span, tuple(options))

    def _closes(self, opened: int) -> bool:
        if self.at == len(self.text):
            self.source.fail(_Span(opened, opened + 1), "this brace is never closed", "options end with '}'")
        if self.text[self.at] == "}":
            self.at += 1
            return True
        return False

    def _option(self, name: str) -> _Option:
        key, span = self._word("={}, \t\n")
        if not key:
            note = "options are written key=value, with spaces between"
            self._fail_here(f"expected an option of {name}, not {self.text[self.at]!r}", note)
        if self.at == len(self.text) or self.text[self.at] != "=":
            return _Option(key, span, None, span)
        self.at += 1
        start = self.at
        self._skip_value()
        if self.at == start:
            self.source.fail(_Span(span.start, start), f"the option {key!r} has no value behind '='")
        return _Option(key, span, self.text[start : self.at], _Span(start, self.at))

    def _skip_value(self) -> None:
        """Move to the end of a value: a space or a closing brace outside its own braces and quotes."""
        depth, opened = 0, self.at
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
            self.source.fail(_Span(opened, opened + 1), "this brace is never closed")

    def _skip_quoted(self) -> None:
        start = self.at
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.at += 2 if self.text[self.at] == "\\" else 1
        if self.at >= len(self.text):
            self.source.fail(_Span(start, start + 1), "this quote is never closed")
        self.at += 1

    def _word(self, ends: str) -> tuple[str, _Span]:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at], _Span(start, self.at)

    def _skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _fail_here(self, message: str, note: str = "") -> NoReturn:
        self.source.fail(_Span(self.at, self.at + 1), message, note)


def _build_pass(source: _Source, item: _Item) -> Pass:
    if item.name not in pass_names():
        source.fail(item.span, f"there is no pass {item.name!r}", did_you_mean(item.name, pass_names()))
    return _build(source, item, pass_class(item.name))


def _build_part(source: _Source, item: _Item, kind: type[Part]) -> Part:
    names = part_names(kind.kind)
    if item.name not in names:
        source.fail(item.span, f"there is no {kind.kind} {item.name!r}", did_you_mean(item.name, names))
    found = part_class(kind.kind, item.name)
    if not issubclass(found, kind):
        source.fail(item.span, f"the {kind.kind} {item.name!r} does not fit here", f"a {kind.__name__} is needed")
    return _build(source, item, found)


def _build(source: _Source, item: _Item, kind: type[P]) -> P:
    fields = {field.name.replace("_", "-"): field for field in option_fields(kind)}
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    inner: list[_Option] = []
    for option in item.options:
        if option.key not in fields:
            inner.append(option)
            continue
        name = fields[option.key].name
        value = _value(source, option, hints[name])
        if isinstance(value, tuple) and name in given:
            value = (*given[name], *value)
        elif name in given:
            source.fail(option.key_span, f"the option {option.key!r} is given twice", "it takes one value")
        given[name] = value
    _give_to_parts(source, inner, kind, hints, given)
    missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and field.name not in given]
    if missing:
        source.fail(item.span, f"{item.name} needs the option {missing[0]!r}", _options_note(kind))
    try:
        return kind(**given)
    except UserError as error:
        source.fail(item.span, f"{item.name}: {error}", _options_note(kind))


def _give_to_parts(
    source: _Source, options: list[_Option], kind: type[Configured], hints: dict[str, Any], given: dict[str, Any]
) -> None:
    """Options of a part written on the pass itself, ``abn{candidates=50}``: they go to the one part that has them."""
    parts: dict[str, Part] = {}
    for field in option_fields(kind):
        value = given.get(field.name, field.default)
        if isinstance(value, Part):
            parts[field.name] = value
    changes: dict[str, dict[str, Any]] = {}
    for option in options:
        name = option.key.replace("-", "_")
        owners = [key for key, part in parts.items() if name in {field.name for field in option_fields(type(part))}]
        if not owners:
            source.fail(option.key_span, f"{kind.name} has no option {option.key!r}", _options_note(kind, option.key))
        if len(owners) > 1:
            one, two = (key.replace("_", "-") for key in owners[:2])
            note = f"write {one}={parts[owners[0]].name}{{{option.key}=...}}"
            source.fail(option.key_span, f"both {one} and {two} have an option {option.key!r}", note)
        mine = changes.setdefault(owners[0], {})
        if name in mine:
            source.fail(option.key_span, f"the option {option.key!r} is given twice", "it takes one value")
        mine[name] = _value(source, option, get_type_hints(type(parts[owners[0]]))[name])
    for key, values in changes.items():
        try:
            given[key] = dataclasses.replace(parts[key], **values)
        except UserError as error:
            first = next(option for option in options if option.key.replace("-", "_") in values)
            source.fail(first.key_span, f"{parts[key].name}: {error}")


def _pass_note() -> str:
    return f"passes are {', '.join(pass_names())}"


def _options_note(kind: type[Configured], wrong: str = "") -> str:
    """What can be given: ``options are budget (list of str), round-to (int)``, after the closest name, if one is."""
    hints = get_type_hints(kind)
    fields = option_fields(kind)
    if not fields:
        return f"{kind.name} takes no options"
    shown = []
    for field in fields:
        required = ", required" if field.default is dataclasses.MISSING else ""
        shown.append(f"{field.name.replace('_', '-')} ({option_type(hints[field.name])}{required})")
    note = f"options are {', '.join(shown)}"
    guess = did_you_mean(wrong, [field.name.replace("_", "-") for field in fields]) if wrong else ""
    inner = [
        f"{field.name.replace('_', '-')} takes {', '.join(f.name.replace('_', '-') for f in option_fields(type(part)))}"
        for field in fields
        if isinstance(part := field.default, Part) and option_fields(type(part))
    ]
    note = "; ".join([note, *inner])
    return f"{guess} {note}" if guess.startswith("did you mean") else note


# Values


def _without_none(hint: Any) -> tuple[Any, bool]:
    """``float | None`` as ``float`` and True."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return rest[0], len(rest) < len(get_args(hint))
    return hint, False


def _value(source: _Source, option: _Option, hint: Any) -> Any:
    hint, optional = _without_none(hint)
    if option.value is None:
        if hint is bool:
            return True
        source.fail(option.key_span, f"the option {option.key!r} needs a value: {option.key}={_example(hint)}")
    if optional and option.value == "none":
        return None
    part = part_kind(hint)
    if part is not None:
        return _part(source, option, part)
    if get_origin(hint) in (tuple, list):
        if option.value == "none":
            return ()
        inner = get_args(hint)[0]
        return tuple(_single(source, option, part, inner) for part in _split_list(source, option))
    return _single(source, option, option.value, hint)


def _part(source: _Source, option: _Option, kind: type[Part]) -> Part:
    """A value that is a part; errors inside it point into the whole text."""
    start, stop = option.value_span.start, option.value_span.stop
    if source.text[start] == '"':
        return parse_part(kind, _single(source, option, source.text[start:stop], str))
    return _build_part(source, _Reader(source, start, kind.kind).only(stop), kind)


def _split_list(source: _Source, option: _Option) -> list[str]:
    """A comma list; commas inside braces or quotes belong to the value."""
    parts, depth, quoted, start = [], 0, False, 0
    text = option.value or ""
    at = 0
    while at < len(text):
        mark = text[at]
        if quoted and mark == "\\":
            at += 1
        elif mark == '"':
            quoted = not quoted
        elif not quoted and mark in "{}":
            depth += 1 if mark == "{" else -1
        elif not quoted and mark == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    parts.append(text[start:])
    if not all(parts):
        source.fail(option.value_span, f"the list of {option.key!r} has an empty place")
    return parts


def _single(source: _Source, option: _Option, text: str, hint: Any) -> Any:
    if text.startswith('"'):
        try:
            text = json.loads(text)
        except json.JSONDecodeError:
            source.fail(option.value_span, f"{text} is not one quoted text")
    convert = _choice if get_origin(hint) is Literal else _CONVERT[hint]
    try:
        return convert(text, hint)
    except ValueError:
        source.fail(option.value_span, f"the option {option.key!r} must be {_wanted(hint)}, not {text!r}")


def _boolean(text: str, hint: Any) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _finite(text: str, hint: Any) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _choice(text: str, hint: Any) -> Any:
    choices = {str(choice): choice for choice in get_args(hint)}
    if text not in choices:
        raise ValueError
    return choices[text]


_CONVERT: dict[Any, Callable[[str, Any], Any]] = {
    bool: _boolean,
    int: lambda text, hint: int(text),
    float: _finite,
    str: lambda text, hint: text,
}


def _wanted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _example(hint: Any) -> str:
    kind = part_kind(hint)
    if kind is not None:
        return part_names(kind.kind)[0]
    if get_origin(hint) in (tuple, list):
        return _example(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return str(get_args(hint)[0])
    return {int: "8", float: "0.5", bool: "true", str: "..."}[hint]


# Passes to text


def _option_text(key: str, value: Any, hint: Any) -> str:
    if value is True:
        return key
    hint, _ = _without_none(hint)
    if get_origin(hint) in (tuple, list):
        if not value:
            return f"{key}=none"
        # Repeated rather than joined: each entry can be read by itself.
        return " ".join(f"{key}={_value_text(entry, inside_list=True)}" for entry in value)
    return f"{key}={_value_text(value)}"


def _value_text(value: Any, *, inside_list: bool = False) -> str:
    if value is None:
        return "none"
    if isinstance(value, Part):
        return pass_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _is_bare(value, inside_list) else json.dumps(value)
    return str(value)


def _is_bare(text: str, inside_list: bool) -> bool:
    """Whether a text can stand without quotes."""
    depth = 0
    for mark in text:
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0 or mark == '"' or (depth == 0 and (mark.isspace() or (inside_list and mark == ","))):
            return False
    return depth == 0 and text not in ("", "none")


def check_options(kind: type[Configured]) -> Sequence[str]:
    """Fields of a pass or part class that no pipeline string could set, or that lack help; empty when all is well."""
    hints = get_type_hints(kind)
    wrong = []
    for field in option_fields(kind):
        hint, _ = _without_none(hints[field.name])
        inner = get_args(hint)[0] if get_origin(hint) in (tuple, list) else hint
        known = get_origin(inner) is Literal or inner in _CONVERT or part_kind(inner) is not None
        if not known or not field.metadata.get("help"):
            wrong.append(field.name)
    return wrong
