"""Options as text: ``prune{criterion=l2 budget=50%FLOPs round-to=8}`` to a pass or part, and back.

Names and keys are kebab-case. A value ends at a space or at the closing brace of its pass; braces
inside a value are its own (``4ms@ort-cpu{threads=2}``), as are spaces in brackets that it begins
with (``[0-4:0.5, 7:0.2]``), and a value in double quotes is a JSON string. What a value means is
decided by the type of the pass's field: ``int``, ``float``, ``bool``, ``str``, a choice of words,
or a list of these, written with commas, by repeating the key, or both; ``none`` is nothing, or the
empty list. A key without a value means ``true``. The value of a part is written as a pass is:
``abn{searcher=evolution{population=20}}``. An option that only one part of a pass has may be
written on the pass: ``abn{searcher=evolution population=20}``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.options.option_types import (
    Options,
    PartOptions,
    option_fields,
    part_kind,
    wanted,
    without_none,
)
from pruneopt.passes.options.registry import part_class, part_names
from pruneopt.passes.options.spec_reader import Item, Option, Reader, Source

__all__ = ["build", "canonical_part", "option_type", "parse_part", "pass_text"]

P = TypeVar("P", bound=Options)


def parse_part(kind: type[PartOptions], text: str) -> PartOptions:
    """Return the part of a kind that a text such as ``evolution{population=20}`` names.

    Raises:
        UserError: ``KIND:1:COLUMN: error: ...`` as `parse_pipeline` does.
    """
    source = Source(text, kind.kind)
    return _build_part(source, Reader(source, 0, kind.kind).only(len(text)), kind)


def canonical_part(kind: str, text: str) -> str:
    """Return the text of a part as `pass_text` writes it, so that equal parts have equal texts.

    Raises:
        UserError: as `parse_part` does.
    """
    source = Source(text, kind)
    item = Reader(source, 0, kind).only(len(text))
    return pass_text(build(source, item, _class_named(source, item, kind)))


def pass_text(step: Options) -> str:
    """Return one pass, or part, as text: ``prune{budget=50%FLOPs round-to=8}``."""
    words = []
    hints = get_type_hints(type(step))
    for item in option_fields(type(step)):
        value = getattr(step, item.name)
        if item.default is dataclasses.MISSING or value != item.default:
            words.append(_option_text(item.name.replace("_", "-"), value, hints[item.name]))
    return step.name + (f"{{{' '.join(words)}}}" if words else "")


def option_type(hint: Any) -> str:
    """Return a field's type in the user's words: ``int``, ``list of str``, ``l1|l2``."""
    hint, _ = without_none(hint)
    kind = part_kind(hint)
    if kind is not None:
        return "|".join(part_names(kind.kind))
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return f"list of {option_type(get_args(hint)[0])}"
    if get_origin(hint) is Union:
        return "|".join(map(option_type, get_args(hint)))
    return str(hint.__name__)


# Text to options


def _build_part(source: Source, item: Item, kind: type[PartOptions]) -> PartOptions:
    found = _class_named(source, item, kind.kind)
    if not issubclass(found, kind):
        names = part_names(kind.kind)
        fitting = ", ".join(name for name in names if issubclass(part_class(kind.kind, name), kind))
        source.fail(
            item.span,
            f"the {kind.kind} {item.name!r} does not fit here",
            f"those that do are {fitting}",
        )
    return build(source, item, found)


def _class_named(source: Source, item: Item, kind: str) -> type[PartOptions]:
    names = part_names(kind)
    if item.name not in names:
        source.fail(item.span, f"there is no {kind} {item.name!r}", did_you_mean(item.name, names))
    return part_class(kind, item.name)


def build(source: Source, item: Item, kind: type[P]) -> P:
    """Return a pass or part of a class with the options that are written.

    Raises:
        UserError: an option that it does not have, a value that does not fit, or a missing one;
            the message points into the text.
    """
    fields = {field.name.replace("_", "-"): field for field in option_fields(kind)}
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    inner: list[Option] = []
    for option in item.options:
        if option.key not in fields:
            inner.append(option)
            continue
        name = fields[option.key].name
        _give(source, option, name, hints[name], given)
    _give_to_parts(source, item, inner, kind, given)
    missing = [
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.name not in given
    ]
    if missing:
        source.fail(item.span, f"{item.name} needs the option {missing[0]!r}", _options_note(kind))
    try:
        return kind(**given)
    except UserError as error:
        source.fail(item.span, f"{item.name}: {error}", _options_note(kind))


def _give(source: Source, option: Option, name: str, hint: Any, given: dict[str, Any]) -> None:
    """Add the value of an option to those of a pass or part; lists grow, others are given once."""
    value = _value(source, option, hint)
    if isinstance(value, tuple) and name in given:
        value = (*given[name], *value)
    elif name in given:
        _fail_twice(source, option)
    given[name] = value


def _fail_twice(source: Source, option: Option) -> NoReturn:
    source.fail(option.key_span, f"the option {option.key!r} is given twice", "it takes one value")


def _give_to_parts(
    source: Source, item: Item, options: list[Option], kind: type[Options], given: dict[str, Any]
) -> None:
    """Give options written on the pass, ``abn{candidates=50}``, to the one part that has them."""
    values = {field.name: given.get(field.name, field.default) for field in option_fields(kind)}
    parts = {name: value for name, value in values.items() if isinstance(value, PartOptions)}
    changes: dict[str, dict[str, Any]] = {}
    for option in options:
        name = option.key.replace("-", "_")
        owners = [key for key, part in parts.items() if option.key in _keys(type(part))]
        if not owners:
            source.fail(
                option.key_span,
                f"{kind.name} has no option {option.key!r}",
                _options_note(kind, option.key),
            )
        if len(owners) > 1:
            one, two = (key.replace("_", "-") for key in owners[:2])
            note = f"write {one}={parts[owners[0]].name}{{{option.key}=...}}"
            source.fail(
                option.key_span, f"both {one} and {two} have an option {option.key!r}", note
            )
        if option.key in _written_inside(source, item, owners[0]):
            _fail_twice(source, option)
        hint = get_type_hints(type(parts[owners[0]]))[name]
        _give(source, option, name, hint, changes.setdefault(owners[0], {}))
    for key, change in changes.items():
        try:
            given[key] = dataclasses.replace(parts[key], **change)
        except UserError as error:
            first = next(option for option in options if option.key.replace("-", "_") in change)
            source.fail(first.key_span, f"{parts[key].name}: {error}")


def _keys(kind: type[Options]) -> list[str]:
    """Return the options of a pass or part as they are written."""
    return [field.name.replace("_", "-") for field in option_fields(kind)]


def _written_inside(source: Source, item: Item, name: str) -> set[str]:
    """Return the options that are written in the braces of one of a pass's parts."""
    found = [option for option in item.options if option.key.replace("-", "_") == name]
    return {
        inner.key for option in found for inner in _part_item(source, option, "part")[1].options
    }


def _options_note(kind: type[Options], wrong: str = "") -> str:
    """Return a note of what can be given: ``options are budget (list of str)``."""
    hints = get_type_hints(kind)
    fields = option_fields(kind)
    if not fields:
        return f"{kind.name} takes no options"
    shown = []
    for field in fields:
        required = ", required" if field.default is dataclasses.MISSING else ""
        shown.append(f"{field.name.replace('_', '-')} ({option_type(hints[field.name])}{required})")
    note = f"options are {', '.join(shown)}"
    guess = did_you_mean(wrong, _keys(kind)) if wrong else ""
    inner = [
        f"{field.name.replace('_', '-')} takes {', '.join(_keys(type(part)))}"
        for field in fields
        if isinstance(part := field.default, PartOptions) and option_fields(type(part))
    ]
    note = "; ".join([note, *inner])
    return f"{guess} {note}" if guess.startswith("did you mean") else note


# Values


def _value(source: Source, option: Option, hint: Any) -> Any:
    hint, optional = without_none(hint)
    if option.value is None:
        if hint is bool:
            return True
        source.fail(
            option.key_span,
            f"the option {option.key!r} needs a value: {option.key}={_example(hint)}",
        )
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


def _part(source: Source, option: Option, kind: type[PartOptions]) -> PartOptions:
    """Return a value that is a part; errors inside it point into the whole text."""
    inner, item = _part_item(source, option, kind.kind)
    return _build_part(inner, item, kind)


def _part_item(source: Source, option: Option, kind: str) -> tuple[Source, Item]:
    """Return a part as written and the text it is in: quotes hold a text of their own."""
    start, stop = option.value_span.start, option.value_span.stop
    if source.text[start] == '"':
        source = Source(_single(source, option, source.text[start:stop], str), kind)
        start, stop = 0, len(source.text)
    return source, Reader(source, start, kind).only(stop)


def _split_list(source: Source, option: Option) -> list[str]:
    """Return a comma list; commas inside braces or quotes belong to the value."""
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


def _single(source: Source, option: Option, text: str, hint: Any) -> Any:
    if text.startswith('"'):
        try:
            text = json.loads(text)
        except json.JSONDecodeError:
            source.fail(option.value_span, f"{text} is not one quoted text")
    try:
        return _converted(text, hint)
    except ValueError:
        source.fail(
            option.value_span, f"the option {option.key!r} must be {wanted(hint)}, not {text!r}"
        )


def _converted(text: str, hint: Any) -> Any:
    """Return a text as a value of the first plain type that fits; `ValueError` for none."""
    if get_origin(hint) is Union:
        for part in get_args(hint):
            with suppress(ValueError):
                return _converted(text, part)
        raise ValueError
    convert = _choice if get_origin(hint) is Literal else _CONVERT[hint]
    return convert(text, hint)


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


def _example(hint: Any) -> str:
    kind = part_kind(hint)
    if kind is not None:
        return part_names(kind.kind)[0]
    if get_origin(hint) in (tuple, list):
        return _example(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return str(get_args(hint)[0])
    if get_origin(hint) is Union:
        return _example(get_args(hint)[0])
    return {int: "8", float: "0.5", bool: "true", str: "..."}[hint]


# Options to text


def _option_text(key: str, value: Any, hint: Any) -> str:
    if value is True:
        return key
    hint, _ = without_none(hint)
    if get_origin(hint) in (tuple, list):
        if not value:
            return f"{key}=none"
        # Repeated rather than joined: each entry can be read by itself.
        return " ".join(f"{key}={_value_text(entry, inside_list=True)}" for entry in value)
    return f"{key}={_value_text(value)}"


def _value_text(value: Any, *, inside_list: bool = False) -> str:
    if value is None:
        return "none"
    if isinstance(value, PartOptions):
        return pass_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _is_bare(value, inside_list) else json.dumps(value)
    return str(value)


def _is_bare(text: str, inside_list: bool) -> bool:
    """Return whether a text can stand without quotes."""
    if text.startswith("[") and "]" not in text:
        return False
    depth = 0
    for mark in text:
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if (
            depth < 0
            or mark == '"'
            or (depth == 0 and (mark.isspace() or (inside_list and mark == ",")))
        ):
            return False
    return depth == 0 and text not in ("", "none")


def check_options(kind: type[Options]) -> Sequence[str]:
    """Return the options that no pipeline string could set, or that lack help."""
    hints = get_type_hints(kind)
    wrong = []
    for field in option_fields(kind):
        hint, _ = without_none(hints[field.name])
        inner = get_args(hint)[0] if get_origin(hint) in (tuple, list) else hint
        kinds = get_args(inner) if get_origin(inner) is Union else (inner,)
        known = (
            all(get_origin(kind) is Literal or kind in _CONVERT for kind in kinds)
            or part_kind(hint) is not None
        )
        if not known or not field.metadata.get("help"):
            wrong.append(field.name)
    return wrong
