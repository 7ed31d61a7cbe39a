"""Reads the text form of a graph back, and points at whatever is wrong with it.

The grammar (``{x}`` any number of times, ``[x]`` once or not at all, ``x,*`` separated by commas,
quotes are literal)::

    graph      = "graph" "@"name "(" [input,*] ")" "{"
                     {channels} {weight} {alias} {op} "return" structure "}"
    input      = "%"name ":" type
    channels   = "channels" "$"name "=" INT
                     ["frozen" "(" STRING ")"] ["blocks" INT] ["keep" "[" [range,*] "]"]
    weight     = ("param" | "buffer" | "constant") "@"name ":" type
    alias      = "alias" "@"name "=" "@"name
    op         = ["%"name,* "="] target "(" [operand,*] ")"
                     ["{" attribute,* "}"] [":" type,*] [location]
    target     = WORD              ; namespace.op[.overload], overload "default" if absent
    operand    = value | "[" [(value | "none"),*] "]" | "none" | BOOL | NUMBER
    attribute  = WORD "=" attr
    attr       = "none" | BOOL | NUMBER | STRING | WORD | batch | "[" [attr,*] "]"
    location   = "loc" "(" [STRING [WORD | STRING]]        ; module, its class
                     [STRING ":" INT] ")"                  ; file and line
    structure  = value | "none" | BOOL | NUMBER | STRING | "[" [structure,*] "]"
               | "{" [(STRING ":" structure),*] "}" | "(" [structure "," [structure,*]] ")"
    value      = "%"name | "@"name ; % inputs and results, @ parameters, buffers and constants

    type       = dtype "[" [dim,*] "]"
    dim        = INT | batch | axis | split | indexed
    batch      = product | "(" product ")" "/" INT         ; N, N*64, (N*2-1)/2
    product    = "N" ["*" INT] [("+" | "-") INT]
    axis       = part {"++" part}
               | "(" [part] ")"    ; the brackets tell a part of no group from a plain size
    part       = ("$"name ["[" range "]"] | "_" "[" range "]" | INT) ["*" INT]
                                   ; no range: all units of the group
    split      = "$"name "/" INT ["=" INT]
                                   ; size, where it is not the group's width over the divisor
    indexed    = INT "~" "(" ["$"name,*] ")" "#"name
    range      = INT ":" INT

    name       = letters, digits, dots, underscores | STRING
    STRING     = a JSON string
    BOOL       = "true" | "false"
    NUMBER     = INT | FLOAT | "inf" | "-inf" | "nan"

Comments run from ``//`` to the end of the line. Operands that are left out at the end are ``none``;
attributes that are left out have the default of torch's schema.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeVar

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Operand, Structure, Value, ValueKind
from pruneopt.ir.schema import DTYPES, MEMORY_FORMATS, Argument, Signature, attr_problem, signature
from pruneopt.ir.text.lexer import Source, Token, tokenize
from pruneopt.ir.text.sizes import type_problem
from pruneopt.ir.types import (
    DEVICE,
    MODE,
    Attr,
    Axis,
    BatchSize,
    ChannelGroup,
    Dim,
    IndexedAxis,
    Keyword,
    Location,
    Part,
    SplitAxis,
    TensorType,
)

__all__ = ["parse_graph"]

_CONSTANTS: dict[str, bool | float | None] = {
    "none": None,
    "true": True,
    "false": False,
    "inf": float("inf"),
    "nan": float("nan"),
}
_KEYWORDS = {*DTYPES, *MEMORY_FORMATS, MODE.name, DEVICE.name}
_WEIGHTS: dict[str, ValueKind] = {"param": "param", "buffer": "buffer", "constant": "constant"}

T = TypeVar("T")


def parse_graph(text: str, name: str = "<text>") -> Graph:
    """Return the graph that a text describes; the inverse of `ir.text.printer.print_graph`.

    ``name`` is what messages call the text, usually its file name. Raises `UserError` with the
    line, the column and the line of text for whatever is wrong; whether types fit the ops is the
    verifier's question.
    """
    return _Parser(Source(text, name)).graph()


class _Tokens:
    """A place in a list of tokens, and the questions a parser asks there."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = tokenize(source)
        self.index = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.index]

    @property
    def second(self) -> Token:
        """The token behind the next one."""
        return self.tokens[min(self.index + 1, len(self.tokens) - 1)]

    def fail(self, token: Token, message: str) -> NoReturn:
        self.source.fail(token.start, token.end, message)

    def take(self) -> Token:
        token = self.next
        self.index = min(self.index + 1, len(self.tokens) - 1)
        return token

    def at(self, text: str) -> bool:
        """Tell whether the next token is this punctuation or word."""
        return self.next.kind in ("punct", "word") and self.next.text == text

    def accept(self, text: str) -> bool:
        found = self.at(text)
        if found:
            self.take()
        return found

    def expect(self, text: str) -> Token:
        if not self.at(text):
            self.fail(self.next, f"expected '{text}', found {self.next}")
        return self.take()

    def word(self, what: str) -> Token:
        if self.next.kind != "word":
            self.fail(self.next, f"expected {what}, found {self.next}")
        return self.take()

    def named(self, sigils: str, what: str) -> Token:
        """Take a name behind one of the sigils."""
        if self.next.kind != "name" or self.next.text[0] not in sigils:
            example = " or ".join(f"{sigil}name" for sigil in sigils)
            self.fail(self.next, f"expected {what} ({example}), found {self.next}")
        return self.take()

    def string(self, what: str) -> str:
        if self.next.kind != "string":
            self.fail(self.next, f"expected {what} in quotes, found {self.next}")
        return str(json.loads(self.take().text))

    def integer(self, what: str) -> int:
        if not _is_integer(self.next):
            self.fail(self.next, f"expected {what} (an integer), found {self.next}")
        return int(self.take().text)

    def listed(self, item: Callable[[], T], close: str) -> list[T]:
        """Take items separated by commas, up to and with the closing bracket."""
        items: list[T] = []
        while not self.accept(close):
            if items and not self.accept(","):
                self.fail(self.next, f"expected ',' or '{close}', found {self.next}")
            items.append(item())
        return items


class _Parser(_Tokens):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.built = Graph("")
        self.values: dict[str, Value] = {}
        self.groups: dict[str, ChannelGroup] = {}

    # The graph and its header

    def graph(self) -> Graph:
        self.expect("graph")
        self.built.name = _name(self.named("@", "the graph's name"))
        self.expect("(")
        inputs = self.index
        self._skip_inputs()
        self.expect("{")
        while self.accept("channels"):
            self._channels()
        self.built.declare_groups(self.groups.values())
        # Input types may name groups, which are declared behind them.
        body, self.index = self.index, inputs
        self.listed(self._input, ")")
        self.index = body
        self._weights()
        while not self.accept("return"):
            self._op()
        self.built.outputs = self._structure()
        self.expect("}")
        if self.next.kind != "end":
            self.fail(self.next, f"expected the end of the text, found {self.next}")
        return self.built

    def _skip_inputs(self) -> None:
        depth = 1
        while depth:
            token = self.take()
            if token.kind == "end":
                self.fail(token, "the list of inputs has no closing ')'")
            if token.kind == "punct":
                depth += {"(": 1, ")": -1}.get(token.text, 0)

    def _input(self) -> None:
        token = self.named("%", "an input")
        self._refuse_redefinition(token, self.values)
        self.expect(":")
        self.values[_name(token)] = self.built.add_input(_name(token), self._type())

    def _channels(self) -> None:
        token = self.named("$", "a channel group")
        self._refuse_redefinition(token, self.groups)
        self.expect("=")
        width, frozen, blocks, keep = self.integer("the width of the group"), None, 1, None
        if self.accept("frozen"):
            self.expect("(")
            frozen = self.string("the reason")
            self.expect(")")
        if self.accept("blocks"):
            blocks = self.integer("the number of blocks")
        if self.accept("keep"):
            self.expect("[")
            keep = tuple(self.listed(self._range, "]"))
        self.groups[_name(token)] = ChannelGroup(_name(token), width, frozen, blocks, keep)

    def _range(self) -> tuple[int, int]:
        start = self.integer("the first unit")
        self.expect(":")
        return start, self.integer("the unit behind the last")

    def _weights(self) -> None:
        while self.next.kind == "word" and self.next.text in _WEIGHTS:
            kind = _WEIGHTS[self.take().text]
            token = self.named("@", f"a {kind}")
            self._refuse_redefinition(token, self.built.params)
            self.expect(":")
            self.built.add_param(_name(token), self._type(), kind)
        while self.accept("alias"):
            token = self.named("@", "another name of a parameter")
            self._refuse_redefinition(token, {**self.built.params, **self.built.aliases})
            self.expect("=")
            if self.next.text[:1] == "%":
                self.fail(self.next, "an alias is of a parameter, a buffer or a constant")
            self.built.aliases[_name(token)] = self._value().name

    def _refuse_redefinition(self, token: Token, defined: Iterable[str]) -> None:
        if _name(token) in defined:
            self.fail(token, f"{token.text} is already defined")

    # Types

    def _type(self) -> TensorType:
        token = self.word("a type")
        if token.text not in DTYPES and token.text != "none":
            self.fail(token, f"unknown dtype '{token.text}'{_suggest(token.text, DTYPES)}")
        self.expect("[")
        type = TensorType(token.text, tuple(self.listed(self._dim, "]")))
        if (problem := type_problem(type)) is not None:
            self.source.fail(token.start, self.tokens[self.index - 1].end, problem)
        return type

    def _dim(self) -> Dim:
        if self.at("N") or (self.at("(") and self.second.text == "N"):
            return self._batch()
        if self.accept("("):
            run = () if self.at(")") else (self._part(),)
            self.expect(")")
            return Axis(run)
        if _is_integer(self.next) and self.second.text == "~":
            return self._indexed()
        if _is_integer(self.next) and self.second.text not in ("++", "*"):
            return self.integer("a size")
        if self.next.kind == "name" and self.next.text[0] == "$" and self.second.text == "/":
            return self._split()
        parts = [self._part()]
        while self.accept("++"):
            parts.append(self._part())
        return Axis(tuple(parts))

    def _batch(self) -> BatchSize:
        bracket = self.accept("(")
        self.expect("N")
        scale = self.integer("the factor of N") if self.accept("*") else 1
        offset = 0
        if self.accept("+") or (_is_integer(self.next) and self.next.text[0] == "-"):
            offset = self.integer("what is added to the batch size")
        if not bracket:
            return BatchSize(scale, offset)
        self.expect(")")
        self.expect("/")
        if self.next.text.lstrip("-0") == "":
            self.fail(self.next, "the batch size is divided by 0")
        return BatchSize(scale, offset, self.integer("the divisor of the batch size"))

    def _indexed(self) -> IndexedAxis:
        size = self.integer("a size")
        self.expect("~")
        self.expect("(")
        groups = self.listed(lambda: self._group().name, ")")
        return IndexedAxis(size, tuple(groups), _name(self.named("#", "the digest of the order")))

    def _split(self) -> SplitAxis:
        group = self._group()
        self.expect("/")
        token = self.next
        divisor = self.integer("the number of blocks")
        if self.accept("="):
            return SplitAxis(group.name, divisor, self.integer("the size of a block"))
        if divisor < 1 or group.width % divisor:
            self.fail(
                token,
                f"the {group.width} channels of ${group.name} do not split into {divisor} blocks",
            )
        return SplitAxis(group.name, divisor, group.width // divisor)

    def _part(self) -> Part:
        group, start, count = None, 0, 0
        if self.next.kind == "name" and self.next.text[0] == "$":
            owner = self._group()
            group, count = owner.name, owner.width
            if self.at("["):
                start, count = self._units(owner)
        elif self.accept("_"):
            start, count = self._units(None)
        elif _is_integer(self.next):
            count = self.integer("a size")
        else:
            self.fail(self.next, f"expected a dimension, found {self.next}")
        repeat = self.integer("the channels of one unit") if self.accept("*") else 1
        return Part(group, count, start, repeat)

    def _units(self, owner: ChannelGroup | None) -> tuple[int, int]:
        """Take a range in brackets as start and count."""
        self.expect("[")
        first = self.next
        start, stop = self._range()
        if owner is not None and not 0 <= start <= stop <= owner.width:
            end = self.tokens[self.index - 1].end
            self.source.fail(first.start, end, f"${owner.name} has units 0:{owner.width}")
        self.expect("]")
        return start, stop - start

    def _group(self) -> ChannelGroup:
        token = self.named("$", "a channel group")
        if _name(token) not in self.groups:
            self.fail(
                token,
                f"unknown channel group {token.text}{_suggest(_name(token), self.groups, '$')}",
            )
        return self.groups[_name(token)]

    # Ops

    def _op(self) -> None:
        results = self._results()
        target = self.word("an op or 'return'")
        name = target.text if target.text.count(".") > 1 else f"{target.text}.default"
        try:
            sig = signature(name)
        except UserError as error:
            self.fail(target, f"unknown op: {error}")
        operands = self._operands(target, sig)
        attrs = self._attrs(target, sig)
        types = self._types() if self.accept(":") else []
        if len(types) != len(results):
            self.fail(target, f"{target.text} has {len(results)} results and {len(types)} types")
        named = [(_name(token), type) for token, type in zip(results, types, strict=True)]
        op = self.built.add_op(name, operands, attrs, named, self._location())
        self.values.update((value.name, value) for value in op.results)

    def _results(self) -> list[Token]:
        if self.next.kind != "name":
            return []
        tokens = [self.named("%", "a result")]
        while self.accept(","):
            tokens.append(self.named("%", "a result"))
        self.expect("=")
        for position, token in enumerate(tokens):
            self._refuse_redefinition(token, [*self.values, *map(_name, tokens[:position])])
        return tokens

    def _types(self) -> list[TensorType]:
        types = [self._type()]
        while self.accept(","):
            types.append(self._type())
        return types

    def _operands(self, target: Token, sig: Signature) -> list[Operand]:
        wanted = sig.operands
        given: list[Operand] = []

        def one() -> None:
            token = self.next
            if len(given) == len(wanted):
                names = ", ".join(argument.name for argument in wanted)
                self.fail(token, f"{target.text} takes {_count(len(wanted), 'operand')} ({names})")
            given.append(self._operand())
            self._check_operand(token, wanted[len(given) - 1], given[-1])

        self.expect("(")
        self.listed(one, ")")
        for argument in wanted[len(given) :]:
            if (
                not argument.has_default and "Optional" not in argument.type
            ):  # printing leaves out none at the end
                self.fail(target, f"{target.text} lacks its operand '{argument.name}'")
        return [*given, *[None] * (len(wanted) - len(given))]

    def _operand(self) -> Operand:
        if self.accept("["):
            return tuple(self.listed(lambda: None if self.accept("none") else self._value(), "]"))
        if self.next.kind == "name":
            return self._value()
        attr = self._attr()
        if attr is None or isinstance(attr, bool | int | float):
            return attr
        self.fail(self.tokens[self.index - 1], "an operand is a value, a number or 'none'")

    def _check_operand(self, token: Token, argument: Argument, operand: Operand) -> None:
        listed = "List[" in argument.type
        if operand is None and not argument.has_default and "Optional" not in argument.type:
            self.fail(token, f"the operand '{argument.name}' must not be none")
        if operand is not None and isinstance(operand, tuple) is not listed:
            self.fail(
                token,
                f"the operand '{argument.name}' is "
                f"{'a list of tensors' if listed else 'one tensor'}",
            )

    def _value(self) -> Value:
        token = self.named("%@", "a value")
        known = self.built.params if token.text[0] == "@" else self.values
        if _name(token) not in known:
            self.fail(
                token, f"undefined value {token.text}{_suggest(_name(token), known, token.text[0])}"
            )
        return known[_name(token)]

    def _attrs(self, target: Token, sig: Signature) -> dict[str, Attr]:
        attrs: dict[str, Attr] = {argument.name: argument.default for argument in sig.attrs}
        arguments = {argument.name: argument for argument in sig.attrs}
        given: set[str] = set()

        def one() -> None:
            token = self.word("an attribute")
            if token.text not in attrs:
                known = f"it has {', '.join(attrs)}" if attrs else "it has none"
                self.fail(token, f"{target.text} has no attribute '{token.text}' ({known})")
            if token.text in given:
                self.fail(token, f"the attribute '{token.text}' is given twice")
            given.add(token.text)
            self.expect("=")
            attrs[token.text] = self._attr()
            problem = attr_problem(arguments[token.text], attrs[token.text])
            if problem is not None:
                self.fail(token, f"{target.text}: {problem}")

        if self.accept("{"):
            self.listed(one, "}")
        for argument in sig.attrs:
            if not argument.has_default and argument.name not in given:
                self.fail(target, f"{target.text} lacks its attribute '{argument.name}'")
        return attrs

    def _attr(self) -> Attr:
        token = self.next
        if token.text == "N" or (token.text == "(" and self.second.text == "N"):
            return self._batch()
        if self.accept("["):
            return tuple(self.listed(self._attr, "]"))
        if token.kind == "string":
            return self.string("a text")
        if token.kind == "number":
            self.take()
            return int(token.text) if _is_integer(token) else float(token.text)
        if token.kind != "word":
            self.fail(token, f"expected a value, found {token}")
        self.take()
        if token.text in _CONSTANTS:
            return _CONSTANTS[token.text]
        if token.text not in _KEYWORDS:
            self.fail(
                token,
                f"unknown word '{token.text}'{_suggest(token.text, [*_KEYWORDS, *_CONSTANTS])}",
            )
        return Keyword(token.text)

    def _location(self) -> Location:
        if not self.accept("loc"):
            return Location()
        self.expect("(")
        module = module_type = file = ""
        line = 0
        if not self._at_file():
            module = self.string("the module's name")
            if self.next.kind == "word":
                module_type = self.take().text
            elif self.next.kind == "string" and not self._at_file():
                module_type = self.string("the module's class")
        if self.next.kind == "string":
            file = self.string("the file")
            self.expect(":")
            line = self.integer("the line")
        self.expect(")")
        return Location(module, module_type, file, line)

    def _at_file(self) -> bool:
        return self.next.kind == "string" and self.second.text == ":"

    # What the network returns

    def _structure(self) -> Structure:
        if self.accept("{"):
            return dict(self.listed(self._entry, "}"))
        if self.accept("["):
            return self.listed(self._structure, "]")
        if self.accept("("):
            return self._tuple()
        if self.next.kind == "name":
            return self._value()
        token = self.next
        attr = self._attr()
        if isinstance(attr, tuple | BatchSize | Keyword):
            self.fail(token, f"the network cannot return {token}")
        return attr

    def _entry(self) -> tuple[str, Structure]:
        key = self.string("a key")
        self.expect(":")
        return key, self._structure()

    def _tuple(self) -> tuple[Structure, ...]:
        if self.accept(")"):
            return ()
        first = self._structure()
        self.expect(",")
        return (first, *self.listed(self._structure, ")"))


def _name(token: Token) -> str:
    """Return the name behind a token's sigil."""
    name = token.text[1:]
    return str(json.loads(name)) if name.startswith('"') else name


def _is_integer(token: Token) -> bool:
    return token.kind == "number" and token.text.lstrip("-").isdigit()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _suggest(name: str, known: Iterable[str], sigil: str = "") -> str:
    close: Sequence[str] = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{sigil}{close[0]}'?" if close else ""
