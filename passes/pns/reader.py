"""A pns schema file as a `Schema`: names with or without the prefix, and its fit to the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.pns.network import Network
from pruneopt.passes.pns.schema import Cat, Merge, Rounding, Schema, Tie, contradictions
from pruneopt.reading import read_record

__all__ = ["read_schema", "schema_of"]

ROUNDING: dict[str, Rounding] = {"none": "none", "eight": "eight", "two_pow": "two-pow"}
METHODS: dict[str, Merge] = {"or": "or", "and": "and"}


def read_schema(path: str | os.PathLike[str], coupling: Coupling) -> Schema:
    """Return the schema in a file, checked against a network.

    Raises:
        UserError: no such file, no schema, an unknown name, or a contradiction of the network's
            channel groups.
    """
    return schema_of(read_record(path, "pns schema", Any), coupling, str(path))


def schema_of(data: Any, coupling: Coupling, where: str) -> Schema:
    """Return the schema that JSON data hold, which are from ``where``; see `read_schema`."""
    network = Network(coupling)
    reader = _Reader(where, network, data)
    schema = reader.schema()
    listed = set(schema.modules)
    missing = [
        name for name, layer in network.layers.items() if layer.is_conv and name not in listed
    ]
    if missing:
        raise UserError(
            f"{where} lists no module {missing[0]}: a schema names every Conv2d of its network"
        )
    problem = next(contradictions(schema, network), None)
    if problem is not None:
        raise UserError(f"{where} contradicts the network: {problem}")
    return schema


class _Reader:
    """Takes a schema apart; every mistake names the file and the place."""

    def __init__(self, where: str, network: Network, data: Any) -> None:
        if not isinstance(data, dict) or not isinstance(data.get("modules"), list):
            raise UserError(f"{where} is no pns schema: it lacks its list of modules")
        self.where, self.network, self.data = where, network, data
        names = [self._text(item, "name") for item in self._items("modules")]
        prefix = data.get("prefix", "")
        if not isinstance(prefix, str):
            raise self._wrong(f"its prefix is {prefix!r}, not a text")
        # Schemas are shared with the prefix of the wrapper that their network once stood in.
        self.prefix = prefix if any(prefix + name in network.layers for name in names) else ""
        self.given = prefix

    def schema(self) -> Schema:
        rounding = self.data.get("channel_rounding", "none")
        if not isinstance(rounding, str) or rounding not in ROUNDING:
            raise self._wrong(
                f"its channel_rounding is {rounding!r}, not one of {', '.join(ROUNDING)}"
            )
        modules = {}
        for item in self._items("modules"):
            name = self._named(self._text(item, "name"), self.network.layers, "Conv2d or Linear")
            modules[name] = (
                self._norm_or_none(item, "prev_bn"),
                self._norm_or_none(item, "next_bn"),
            )
        return Schema(
            modules,
            self._ties("shortcuts"),
            self._ties("depthwise_conv_adjacent_bn"),
            tuple(self._cat(item) for item in self._items("cats")),
            tuple(pair for item in self._items("fixed_bn_ratio") for pair in self._fixed(item)),
            ROUNDING[rounding],
        )

    def _ties(self, key: str) -> tuple[Tie, ...]:
        found = []
        for item in self._items(key):
            method = item.get("method")
            if not isinstance(method, str) or method not in METHODS:
                raise self._wrong(f"an entry of {key} has the method {method!r}, not 'or' or 'and'")
            names = tuple(self._norm(name) for name in self._texts(item, "names"))
            if names:
                found.append(Tie(names, METHODS[method]))
        return tuple(found)

    def _cat(self, item: dict[str, Any]) -> Cat:
        convs = {name: layer for name, layer in self.network.layers.items() if layer.is_conv}
        norms = tuple(self._norm(name) for name in self._texts(item, "input_bn_names"))
        return Cat(
            norms,
            tuple(
                self._named(name, convs, "Conv2d")
                for name in self._texts(item, "output_conv_names")
            ),
        )

    def _fixed(self, item: dict[str, Any]) -> list[tuple[str, float]]:
        """Return a name that pns reads without the prefix, by mistake; both ways are understood."""
        ratio = item.get("ratio")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise self._wrong(f"a fixed_bn_ratio is {ratio!r}, not a number above 0 and below 1")
        names = [item["name"]] if isinstance(item.get("name"), str) else self._texts(item, "name")
        return [(self._fixed_norm(name), float(ratio)) for name in names]

    def _fixed_norm(self, name: str) -> str:
        stripped = name.removeprefix(self.given)
        for candidate in (name, self.prefix + name, stripped):
            if candidate in self.network.norms:
                return candidate
        return self._norm(name)

    def _norm_or_none(self, item: dict[str, Any], key: str) -> str:
        name = item.get(key, "")
        return "" if name in ("", None) else self._norm(self._text(item, key))

    def _norm(self, name: str) -> str:
        return self._named(name, self.network.norms, "BatchNorm2d with scale")

    def _named(self, name: str, known: Iterable[str], what: str) -> str:
        names = list(known)
        if self.prefix + name not in names:
            guess = did_you_mean(self.prefix + name, names)
            raise self._wrong(
                f"it names {name[:100]}, but the network has no {what} of this name: {guess}"
            )
        return self.prefix + name

    def _items(self, key: str) -> list[dict[str, Any]]:
        found = self.data.get(key) or []
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._wrong(f"its {key} is not a list of objects")
        return found

    def _texts(self, item: dict[str, Any], key: str) -> list[str]:
        found = item.get(key)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self._wrong(
                f"an entry has no list of names under {key!r}: {json.dumps(item)[:80]}"
            )
        return found

    def _text(self, item: dict[str, Any], key: str) -> str:
        found = item.get(key)
        if not isinstance(found, str):
            raise self._wrong(f"an entry has no text under {key!r}: {json.dumps(item)[:80]}")
        return found

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self.where}: {what}")
