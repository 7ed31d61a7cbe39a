"""The tree of modules that holds a graph's weights, and the ``__init__`` that builds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from keyword import iskeyword
from typing import Literal
from unicodedata import normalize

from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.codegen.expressions import quoted
from pruneopt.ir.graph import Graph, Value
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.types import dim_size

__all__ = ["ModuleTree", "is_plain_name"]


def is_plain_name(name: str) -> bool:
    """Tell whether Python reads ``self.<name>`` inside a class as that very name."""
    # Python reads look-alikes (a ligature, the Kelvin sign) as their plain letters.
    plain = name.isidentifier() and normalize("NFKC", name) == name
    return plain and not iskeyword(name) and not name.startswith("__")


_OWN = frozenset(dir(nn.Module()))


def _refuse_reserved(name: str) -> None:
    """Raise `UserError` for the name of a weight that no module could hold."""
    for part in name.split("."):
        if not part:
            raise UserError(f"the weight {name!r} cannot be held by a module: a part is empty")
        if part in _OWN:
            raise UserError(
                f"the weight {name!r} cannot be held by a module: torch.nn.Module uses the name "
                f"{part!r} itself, rename it"
            )


def _refuse_doubles(node: _Node, prefix: str) -> None:
    """Raise `UserError` where a name is both a weight and a module with weights below."""
    for name in node.leaves:
        if name.removeprefix(prefix) in node.children:
            raise UserError(f"the graph names {name!r} as a weight and as a module that holds some")
    for part, child in node.children.items():
        _refuse_doubles(child, f"{prefix}{part}.")


@dataclass
class _Node:
    """A module of the tree.

    A declared layer, a container of numbered children, a second name of another module, or a plain
    one.
    """

    layer: str | None = None
    link: str | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    leaves: list[str] = field(default_factory=list)

    @property
    def is_closed(self) -> bool:
        """Tell whether what lies below is the module's own, or another's, to declare."""
        return self.layer is not None or self.link is not None

    @cached_property
    def kind(self) -> Literal["layer", "link", "list", "dict", "plain"]:
        if self.layer is not None:
            return "layer"
        if self.link is not None:
            return "link"
        if self.leaves or not self.children or not all(name.isdecimal() for name in self.children):
            return "plain"
        return "list" if set(self.children) == set(map(str, range(len(self.children)))) else "dict"

    def numbered(self) -> list[tuple[str, _Node]]:
        return sorted(self.children.items(), key=lambda item: int(item[0]))


_LEAF = _Node(layer="")


class ModuleTree:
    """The generated class as a tree of modules that hold every weight of a graph.

    ``layers`` maps the qualified names of declared layers to their declarations.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, str]) -> None:
        self.graph = graph
        self.links = _links(graph, layers)
        self.root = _Node()
        for name in (*graph.params, *graph.aliases):
            _refuse_reserved(name)
            node, parts = self.root, name.split(".")
            for depth, part in enumerate(parts[:-1], 1):
                path = ".".join(parts[:depth])
                node = node.children.setdefault(part, _Node(layers.get(path), self.links.get(path)))
                if node.is_closed:
                    break
            else:
                node.leaves.append(name)
        _refuse_doubles(self.root, "")
        self._places: dict[str, tuple[str, _Node]] = {"": ("self", self.root)}

    def path(self, name: str) -> str:
        """Return the Python expression of a module or weight: ``self.layer1[0].conv1``."""
        return self._place(name)[0]

    def _place(self, name: str) -> tuple[str, _Node]:
        if name not in self._places:
            parent, _, part = name.rpartition(".")
            text, node = self._place(parent)
            self._places[name] = _member(text, node.kind, part), node.children.get(part, _LEAF)
        return self._places[name]

    @property
    def base(self) -> str:
        """The generated class's base: a container if its own children are numbered."""
        return {"list": "nn.ModuleList", "dict": "nn.ModuleDict"}.get(self.root.kind, "nn.Module")

    def lines(self) -> list[str]:
        """Return the lines of ``__init__``."""
        children = (
            _shell(self.root).removeprefix(f"{self.base}(") if self.root.kind != "plain" else ")"
        )
        ties = [
            line
            for alias, name in self.links.items()
            for line in self._assign(alias, self.path(name))
        ]
        for alias, name in self.graph.aliases.items():
            if not any(alias.startswith(f"{prefix}.") for prefix in self.links):
                ties += self._tie(alias, self.path(name))
        return [f"super().__init__({children}", *self._fill(self.root, "self", ""), *ties]

    def frozen_lines(self) -> Iterator[str]:
        """Return the lines that take the gradients from the weights that were captured without.

        There is one for the largest module whose weights are all among them.
        """
        params = self.graph.params
        names = {**{name: name for name in params}, **self.graph.aliases}
        held = {alias: name for alias, name in names.items() if params[name].kind == "param"}
        frozen = [alias for alias, name in held.items() if name in self.graph.without_grad]
        trained = {path for alias in held.keys() - set(frozen) for path in _above(alias)}
        whole = [next((p for p in _above(alias) if p not in trained), alias) for alias in frozen]
        yield from (f"{self.path(path)}.requires_grad_(False)" for path in dict.fromkeys(whole))

    # Building

    def _fill(self, node: _Node, text: str, prefix: str) -> Iterator[str]:
        """Return the lines that give a module its weights and children."""
        for name in node.leaves:
            if name in self.graph.params:
                yield self._declare(text, name.removeprefix(prefix), self.graph.params[name])
        for part, child in node.children.items():
            inner = _member(text, node.kind, part)
            if node.kind == "plain" and child.kind != "link":
                shell = _shell(child)
                yield (
                    f"{inner} = {shell}"
                    if is_plain_name(part)
                    else f"{text}.add_module({quoted(part)}, {shell})"
                )
            if not child.is_closed:
                yield from self._fill(child, inner, f"{prefix}{part}.")

    def _declare(self, text: str, leaf: str, value: Value) -> str:
        make = "ones" if leaf == "running_var" else "zeros"
        sizes = ", ".join(str(dim_size(dim)) for dim in value.type.dims) or "()"
        dtype = DTYPES[value.type.dtype]
        tensor = f"torch.{make}({sizes}{'' if value.type.dtype == 'f32' else f', dtype={dtype}'})"
        if value.kind != "param":
            return f"{text}.register_buffer({quoted(leaf)}, {tensor})"
        trainable = dtype.is_floating_point or dtype.is_complex
        parameter = f"nn.Parameter({tensor}{'' if trainable else ', requires_grad=False'})"
        if is_plain_name(leaf):
            return f"{text}.{leaf} = {parameter}"
        return f"{text}.register_parameter({quoted(leaf)}, {parameter})"

    def _assign(self, name: str, value: str) -> Iterator[str]:
        """Put a module that exists already at a second name."""
        parent, _, part = name.rpartition(".")
        node = self._node(parent)
        if node.kind == "plain" and not is_plain_name(part):
            yield f"{self.path(parent)}.add_module({quoted(part)}, {value})"
        else:
            yield f"{self.path(name)} = {value}"

    def _tie(self, alias: str, value: str) -> Iterator[str]:
        """Let a weight be the tensor of another name."""
        parent, _, leaf = alias.rpartition(".")
        node, kind = self._node(parent), self.graph.params[self.graph.aliases[alias]].kind
        if kind != "param" and node.kind != "layer":
            yield f"{self.path(parent)}.register_buffer({quoted(leaf)}, {value})"
        elif is_plain_name(leaf):
            yield f"{self.path(alias)} = {value}"
        else:
            yield f"{self.path(parent)}.register_parameter({quoted(leaf)}, {value})"

    def _node(self, name: str) -> _Node:
        node = self.root
        for part in name.split(".") if name else ():
            node = node.children[part]
        return node


def _above(name: str) -> list[str]:
    """Return the modules that a weight lies in, from the outside in."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _member(text: str, kind: str, part: str) -> str:
    if kind == "list":
        return f"{text}[{part}]"
    if kind == "dict":
        return f"{text}[{quoted(part)}]"
    return f"{text}.{part}" if is_plain_name(part) else f"getattr({text}, {quoted(part)})"


def _shell(node: _Node) -> str:
    """Return the expression that makes a module, its numbered children included.

    Plain modules are filled afterwards.
    """
    if node.kind == "layer":
        return node.layer or ""
    if node.kind not in ("list", "dict"):
        return "nn.Module()"
    children = [(part, _shell(child)) for part, child in node.numbered()]
    if node.kind == "dict":
        return (
            "nn.ModuleDict({"
            + ", ".join(f"{quoted(part)}: {text}" for part, text in children)
            + "})"
        )
    texts = [text for _, text in children]
    if len(texts) > 2 and set(texts) == {"nn.Module()"}:
        return f"nn.ModuleList(nn.Module() for _ in range({len(texts)}))"
    return f"nn.ModuleList([{', '.join(texts)}])"


def _links(graph: Graph, layers: Mapping[str, str]) -> dict[str, str]:
    """Find the modules that are a second name of another one.

    All below them is an alias of the same leaf of the other.

    Layers that share all their weights are two modules where they compute different things: an
    embedding and the linear layer without bias that is tied to it.
    """
    names = {**{name: name for name in graph.params}, **graph.aliases}
    links: dict[str, str] = {}
    for alias, name in graph.aliases.items():
        parts = alias.split(".")
        for depth in range(1, len(parts)):
            second, leaf = ".".join(parts[:depth]), ".".join(parts[depth:])
            if any(f"{second}.".startswith(f"{known}.") for known in links):
                break  # from the outside in: what lies within a linked module comes with it
            first = name.removesuffix(f".{leaf}")
            if (
                first != name
                and _same_below(names, second, first)
                and _same_layers(layers, second, first)
            ):
                links[second] = first
                break
    return links


def _same_below(names: Mapping[str, str], second: str, first: str) -> bool:
    below = {
        n.removeprefix(f"{second}."): t for n, t in names.items() if n.startswith(f"{second}.")
    }
    original = {n.removeprefix(f"{first}."): n for n in names if n.startswith(f"{first}.")}
    return below == original


def _same_layers(layers: Mapping[str, str], second: str, first: str) -> bool:
    below = {
        name.removeprefix(second): text
        for name, text in layers.items()
        if f"{name}.".startswith(f"{second}.")
    }
    return all(layers.get(f"{first}{rest}") == text for rest, text in below.items())
