"""Which ops of a graph are calls of a torch.nn layer, and how that layer is declared.

An op is a layer's call when its weights lie together under one name (``conv1.weight``,
``conv1.bias``) and nothing else lies there. A layer may be called several times if every call
agrees on its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pruneopt.ir.codegen.expressions import attr_text
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.types import MODE, Attr, dim_size

__all__ = ["FROZEN", "LayerCall", "find_layers"]

FROZEN = "FrozenBatchNorm"
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """An op read as the call of the layer named ``prefix`` on ``source``."""

    prefix: str
    declaration: str
    source: Value


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The way an op's schema maps to a layer.

    It says where the op's input and weights are, and what the layer's arguments are.
    """

    source: int
    leaves: Mapping[str, int]
    declare: Callable[[Op], str | None]


def find_layers(graph: Graph) -> dict[Op, LayerCall]:
    """Return every op that is a call of a layer, with the layer's declaration.

    It is equal for all calls of one layer.
    """
    names = {**{name: name for name in graph.params}, **graph.aliases}
    under: dict[str, set[str]] = {}
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        under.setdefault(prefix, set()).add(leaf)
    for prefix in list(under):
        while prefix:
            prefix, _, child = prefix.rpartition(".")
            under.setdefault(prefix, set()).add(f"{child}.")  # what has modules below is no layer
    aliases: dict[str, list[str]] = {}
    for alias, name in graph.aliases.items():
        aliases.setdefault(name, []).append(alias)
    calls: dict[Op, LayerCall] = {}
    for op in graph.ops:
        call = _layer_call(op, names, under, aliases)
        if call is not None:
            calls[op] = call
    declarations: dict[str, set[str]] = {}
    for call in calls.values():
        declarations.setdefault(call.prefix, set()).add(call.declaration)
    return {op: call for op, call in calls.items() if len(declarations[call.prefix]) == 1}


def _layer_call(
    op: Op,
    names: Mapping[str, str],
    under: Mapping[str, set[str]],
    aliases: Mapping[str, list[str]],
) -> LayerCall | None:
    pattern = PATTERNS.get(op.target)
    if pattern is None:
        return None
    source = op.value(pattern.source)
    weights = {leaf: op.value(index) for leaf, index in pattern.leaves.items()}
    held = {leaf: value for leaf, value in weights.items() if value is not None}
    # A layer has one ``dtype``, which all its weights take.
    if source is None or not held or len({v.type.dtype for v in held.values()}) != 1:
        return None
    if any(
        op.operands[index] is not None and leaf not in held
        for leaf, index in pattern.leaves.items()
    ):
        return None
    declaration = pattern.declare(op)
    if declaration is None:
        return None
    # A layer with anything else below its name would lose that, or load something it lacks.
    expected = set(held) | ({COUNTER} if "running_mean" in held else set())
    fitting = [
        prefix
        for prefix in _prefixes(held, aliases)
        if under[prefix] == expected
        and all(names[f"{prefix}.{leaf}"] == v.name for leaf, v in held.items())
    ]
    if not fitting:
        return None
    return LayerCall(op.loc.module if op.loc.module in fitting else fitting[0], declaration, source)


def _prefixes(held: Mapping[str, Value], aliases: Mapping[str, list[str]]) -> Iterator[str]:
    """Return the names of the module that holds the first weight: its own first, then aliases."""
    leaf, value = next(iter(held.items()))
    for name in (value.name, *aliases.get(value.name, ())):
        prefix, _, last = name.rpartition(".")
        if prefix and last == leaf:
            yield prefix


# Declarations


def _call(
    name: str, positional: list[Attr], keywords: dict[str, tuple[Attr, Attr]], weight: Value
) -> str:
    """Write ``nn.Conv2d(16, 12, 3, padding=1)``: keywords at their default are left out."""
    texts = [attr_text(item) for item in positional]
    texts += [
        f"{key}={attr_text(value)}"
        for key, (value, default) in keywords.items()
        if value != default
    ]
    if weight.type.dtype != "f32":
        texts.append(f"dtype={DTYPES[weight.type.dtype]}")
    return f"{name}({', '.join(texts)})"


def _sizes(value: Value) -> tuple[int, ...]:
    return tuple(dim_size(dim) for dim in value.type.dims)


def _square(attr: Attr, rank: int) -> Attr:
    """Return a setting of every spatial dimension, as one number if all agree."""
    items = attr if isinstance(attr, tuple) else (attr,)
    if len(items) == 1:
        items = items * rank
    return items[0] if len(set(items)) == 1 else items


def _held(op: Op, *indices: int) -> tuple[Value, ...]:
    """Return the weights at those operands that are there."""
    return tuple(value for index in indices if (value := op.value(index)) is not None)


def _conv(op: Op) -> str | None:
    weight = op.value(1)
    rank = int(op.base[4])
    source = op.value(0)
    if (
        weight is None
        or source is None
        or weight.type.rank != rank + 2
        or source.type.rank != rank + 2
    ):
        return None
    sizes, groups = _sizes(weight), op.attrs["groups"]
    if not isinstance(groups, int):
        return None
    padding = op.attrs["padding"]
    keywords: dict[str, tuple[Attr, Attr]] = {
        "stride": (_square(op.attrs["stride"], rank), 1),
        "padding": (padding if isinstance(padding, str) else _square(padding, rank), 0),
        "dilation": (_square(op.attrs["dilation"], rank), 1),
        "groups": (groups, 1),
        "bias": (op.value(2) is not None, True),
    }
    return _call(
        f"nn.Conv{rank}d", [sizes[1] * groups, sizes[0], _square(sizes[2:], rank)], keywords, weight
    )


def _conv_transpose(op: Op) -> str | None:
    weight, source, groups = op.value(1), op.value(0), op.attrs["groups"]
    rank = int(op.base[-2])
    if (
        weight is None
        or source is None
        or source.type.rank != rank + 2
        or not isinstance(groups, int)
    ):
        return None
    sizes = _sizes(weight)
    keywords: dict[str, tuple[Attr, Attr]] = {
        "stride": (_square(op.attrs["stride"], rank), 1),
        "padding": (_square(op.attrs["padding"], rank), 0),
        "output_padding": (_square(op.attrs["output_padding"], rank), 0),
        "groups": (groups, 1),
        "bias": (op.value(2) is not None, True),
        "dilation": (_square(op.attrs["dilation"], rank), 1),
    }
    positional: list[Attr] = [sizes[0], sizes[1] * groups, _square(sizes[2:], rank)]
    return _call(f"nn.ConvTranspose{rank}d", positional, keywords, weight)


def _linear(op: Op) -> str | None:
    weight = op.value(1)
    if weight is None or weight.type.rank != 2:
        return None
    sizes = _sizes(weight)
    return _call(
        "nn.Linear", [sizes[1], sizes[0]], {"bias": (op.value(2) is not None, True)}, weight
    )


def _batch_norm(op: Op) -> str | None:
    """Declare a batch norm layer.

    One that always uses its running statistics becomes a frozen one.
    """
    source, training, weights = op.value(0), op.attrs["training"], _held(op, 1, 2)
    running = _held(op, 3, 4)
    if (
        source is None
        or len(weights) == 1
        or len(running) == 1
        or source.type.rank not in (2, 3, 4, 5)
    ):
        return None
    # No layer normalises by the batch in evaluation although it has running statistics, and none
    # can use statistics that it does not have.
    if (training is True) == bool(running) or (training == MODE and not running):
        return None
    rank = {2: 1, 3: 1, 4: 2, 5: 3}[source.type.rank]
    held = (*weights, *running)
    keywords: dict[str, tuple[Attr, Attr]] = {
        "eps": (op.attrs["eps"], 1e-5),
        "momentum": (op.attrs["momentum"], 0.1),
        "affine": (bool(weights), True),
        "track_running_stats": (bool(running), True),
    }
    name = f"nn.BatchNorm{rank}d" if training is not False else f"{FROZEN}{rank}d"
    return _call(name, [_sizes(held[0])[0]], keywords, held[0])


def _layer_norm(op: Op) -> str | None:
    weight = op.value(1)
    shape = op.attrs["normalized_shape"]
    if weight is None or shape != _sizes(weight):
        return None
    eps, bias = (op.attrs["eps"], 1e-5), (op.value(2) is not None, True)
    return _call(
        "nn.LayerNorm", [shape[0] if len(shape) == 1 else shape], {"eps": eps, "bias": bias}, weight
    )


def _rms_norm(op: Op) -> str | None:
    weight, shape = op.value(1), op.attrs["normalized_shape"]
    if weight is None or shape != _sizes(weight):
        return None
    eps: tuple[Attr, Attr] = (op.attrs["eps"], None)
    return _call("nn.RMSNorm", [shape[0] if len(shape) == 1 else shape], {"eps": eps}, weight)


def _group_norm(op: Op) -> str | None:
    weights, eps = _held(op, 1, 2), (op.attrs["eps"], 1e-5)
    if len(weights) != 2:
        return None
    return _call(
        "nn.GroupNorm", [op.attrs["num_groups"], _sizes(weights[0])[0]], {"eps": eps}, weights[0]
    )


def _embedding(op: Op) -> str | None:
    weight = op.value(0)
    if weight is None or weight.type.rank != 2:
        return None
    keywords: dict[str, tuple[Attr, Attr]] = {
        "padding_idx": (op.attrs["padding_idx"], -1),
        "scale_grad_by_freq": (op.attrs["scale_grad_by_freq"], False),
        "sparse": (op.attrs["sparse"], False),
    }
    return _call("nn.Embedding", list(_sizes(weight)), keywords, weight)


def _prelu(op: Op) -> str | None:
    weight = op.value(1)
    if weight is None or weight.type.rank != 1:
        return None
    return _call("nn.PReLU", [], {"num_parameters": (_sizes(weight)[0], 1)}, weight)


_PAIR = {"weight": 1, "bias": 2}
PATTERNS: dict[str, _Pattern] = {
    **{
        f"aten.conv{rank}d.{form}": _Pattern(0, _PAIR, _conv)
        for rank in (1, 2, 3)
        for form in ("default", "padding")
    },
    "aten.conv_transpose1d.default": _Pattern(0, _PAIR, _conv_transpose),
    "aten.conv_transpose2d.input": _Pattern(0, _PAIR, _conv_transpose),
    "aten.conv_transpose3d.input": _Pattern(0, _PAIR, _conv_transpose),
    "aten.linear.default": _Pattern(0, _PAIR, _linear),
    "aten.batch_norm.default": _Pattern(
        0, {**_PAIR, "running_mean": 3, "running_var": 4}, _batch_norm
    ),
    "aten.layer_norm.default": _Pattern(0, _PAIR, _layer_norm),
    "aten.rms_norm.default": _Pattern(0, {"weight": 1}, _rms_norm),
    "aten.group_norm.default": _Pattern(0, _PAIR, _group_norm),
    "aten.embedding.default": _Pattern(1, {"weight": 0}, _embedding),
    "aten.prelu.default": _Pattern(0, {"weight": 1}, _prelu),
}
