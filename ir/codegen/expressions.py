"""One op as one Python expression.

Operators, indexing and a few ops whose Python face differs from their schema are spelled by hand;
every other op is written from its schema as a call of `torch.nn.functional`, of a tensor method or
of a torch function, and if none of them takes the schema's arguments, as a call of ``torch.ops``
itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from pruneopt.ir.graph import Op, Operand, Value
from pruneopt.ir.schema import DTYPES, MEMORY_FORMATS, Argument, overload, signature
from pruneopt.ir.types import MODE, Attr, BatchSize, Keyword

__all__ = ["Scope", "attr_text", "comment", "expression", "quoted", "returns_several"]


@dataclass
class Scope:
    """The names that an expression may use.

    The Python text of every value, the device, and lines that go before it.
    """

    text: Mapping[Value, str]
    device: str
    weights: Mapping[str, str]
    """The Python text of every weight by name."""
    own: Keyword | None = None
    """The floating type that the network was captured in; None without one."""
    dtype: str = ""
    """The Python text in its place, so that a module computes in the type that it is cast to."""
    prelude: list[str] = field(default_factory=list)

    def operand(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return self.text[operand]
        if isinstance(operand, tuple):
            items = ["None" if item is None else self.text[item] for item in operand]
            return f"[{', '.join(items)}]"
        return attr_text(operand, self.device)


@dataclass(frozen=True, slots=True)
class _OwnType(Keyword):
    """The type of the network as an attribute; ``name`` is its Python text."""


def attr_text(attr: Attr, device: str = "None", brackets: str = "()") -> str:
    """Return an attribute as Python text."""
    if isinstance(attr, BatchSize):
        return _batch_text(attr)
    if isinstance(attr, tuple):
        inner = ", ".join(attr_text(item, device, brackets) for item in attr)
        return (
            brackets[0] + inner + ("," if len(attr) == 1 and brackets == "()" else "") + brackets[1]
        )
    if isinstance(attr, _OwnType):
        return attr.name
    if isinstance(attr, Keyword):
        if attr.name in DTYPES:
            return str(DTYPES[attr.name])
        if attr.name in MEMORY_FORMATS:
            return str(MEMORY_FORMATS[attr.name])
        return "self.training" if attr == MODE else device
    if isinstance(attr, float) and not math.isfinite(attr):
        return f'float("{attr}")'
    return quoted(attr) if isinstance(attr, str) else repr(attr)


def quoted(text: str) -> str:
    """Return a text as a Python literal, in double quotes where it needs no escapes."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)


def comment(text: str) -> str:
    """Return a text as the words of a comment: on one line, whatever it holds."""
    return text if text.isprintable() else repr(text)[1:-1]


def _batch_text(size: BatchSize) -> str:
    text = "n" if size.scale == 1 else f"n * {size.scale}"
    if size.offset:
        text += f" {'+' if size.offset > 0 else '-'} {abs(size.offset)}"
    if size.divisor == 1:
        return text
    return (
        f"({text}) // {size.divisor}"
        if size.offset or size.scale != 1
        else f"{text} // {size.divisor}"
    )


@cache
def returns_several(target: str) -> bool:
    """Tell whether an op gives a tuple or a list, even of one tensor."""
    schema: Any = overload(target)
    returns = schema._schema.returns
    return len(returns) != 1 or str(returns[0].type).startswith("List[")


def expression(op: Op, scope: Scope) -> str:
    """Return the Python expression that computes an op's results."""
    special = SPECIAL.get(op.target) or SPECIAL.get(op.base)
    text = special(op, scope) if special is not None else None
    return text if text is not None else _by_schema(op, scope)


# By schema

Given = list[tuple[Argument, Any]]
SPLAT = frozenset({"view", "reshape", "permute", "expand", "repeat"})
SQUARE = frozenset(
    {"kernel_size", "stride", "padding", "dilation", "output_size", "output_padding"}
)
FUNCTION_STYLE = frozenset({"addmm", "baddbmm", "addcmul", "addcdiv", "lerp"})
DISPATCHED = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})
RENAMED = {"log_sigmoid": "logsigmoid"}
PLACES = frozenset({"arange", "linspace", "logspace", "range"})
WHOLE = frozenset({"bool", "u8", "i8", "i16", "i32", "i64"})
# Deprecated names, and names under which torch.nn.functional means something else than the op.
NOT_FUNCTIONAL = frozenset(
    {"sigmoid", "tanh", "normalize", "embedding_bag", "instance_norm", "unfold"}
)


def _all_given(op: Op) -> Given:
    operands = iter(op.operands)
    return [
        (a, next(operands) if a.is_tensor else op.attrs[a.name])
        for a in signature(op.target).arguments
    ]


def _given(op: Op, scope: Scope) -> Given:
    """Return the arguments of an op, with the network's own type written as what it is cast to."""
    given = _all_given(op)
    if scope.own not in op.attrs.values() or not _follows(op):
        return given
    own = _OwnType(scope.dtype)
    return [(argument, own if value == scope.own else value) for argument, value in given]


def _follows(op: Op) -> bool:
    """Tell whether the floating type that an op names changes when its network is cast.

    Not where places are counted: in half precision they would be other numbers without a word.
    """
    source: Op | None = op
    while source is not None and source.base not in PLACES:
        first = next(source.inputs, None)
        source = first.producer if first is not None and first.type.dtype in WHOLE else None
    return source is None


def _is_default(argument: Argument, value: Any) -> bool:
    if not argument.has_default:
        return False
    return value is None or (not argument.is_tensor and value == argument.default)


def _arguments(given: Given, scope: Scope, *, lists: bool = False) -> list[str]:
    """Return the call's arguments.

    Required ones stand by position, those with a default by name, and those at it are left out.
    """
    texts: list[str] = []
    named = False
    for argument, value in given:
        if _is_default(argument, value):
            named = True
            continue
        text = _argument_text(argument, value, scope, lists)
        named = named or argument.keyword_only or (argument.has_default and not argument.is_tensor)
        texts.append(f"{argument.name}={text}" if named else text)
    return texts


def _argument_text(argument: Argument, value: Any, scope: Scope, lists: bool) -> str:
    if argument.is_tensor:
        return scope.operand(value)
    square = isinstance(value, tuple) and argument.name in SQUARE and len(set(value)) == 1
    if square and not lists:
        value = value[0]
    return attr_text(value, scope.device, "[]" if lists else "()")


def _by_schema(op: Op, scope: Scope) -> str:
    given = _given(op, scope)
    if any(
        argument.is_tensor and isinstance(value, tuple) and None in value
        for argument, value in given
    ):
        return _by_ops(op, given, scope)  # torch's own functions take no gaps among indices
    function = _functional_name(op, given)
    if function is not None:
        return f"{function}({', '.join(_arguments(given, scope))})"
    if _is_method(op, given):
        base, rest = scope.operand(given[0][1]), given[1:]
        if op.base in SPLAT and isinstance(rest[0][1], tuple) and rest[0][1]:
            sizes = [attr_text(item, scope.device) for item in rest[0][1]]
            return f"{base}.{op.base}({', '.join(sizes + _arguments(rest[1:], scope))})"
        return f"{base}.{op.base}({', '.join(_arguments(rest, scope))})"
    function = _torch_name(op)
    if function is not None:
        return f"{function}({', '.join(_arguments(given, scope))})"
    return _by_ops(op, given, scope)


def _by_ops(op: Op, given: Given, scope: Scope) -> str:
    target = op.target.removesuffix(".default")
    return f"torch.ops.{target}({', '.join(_arguments(given, scope, lists=True))})"


def _functional_name(op: Op, given: Given) -> str | None:
    """Return ``F.relu`` where torch.nn.functional has a function with the schema's arguments."""
    name = RENAMED.get(op.base, op.base)
    function = getattr(functional, name, None)
    if (
        function is None
        or name in NOT_FUNCTIONAL
        or name.endswith("_loss")
        or not op.target.startswith("aten.")
    ):
        return None
    if inspect.isbuiltin(function) or name in DISPATCHED:
        return f"F.{name}"
    if not inspect.isfunction(function):
        return None
    parameters = _parameters(function)
    for index, (argument, value) in enumerate(given):
        by_name = argument.name in parameters or (index == 0 and argument.name == "self")
        in_place = index == 0 or (index < len(parameters) and parameters[index] == argument.name)
        if not _is_default(argument, value) and not (
            by_name and (argument.has_default or in_place)
        ):
            return None
    # A tensor with a default is written by position: its place must agree too.
    names = [argument.name for argument, _ in given if argument.is_tensor][1:]
    return (
        f"F.{name}"
        if [parameter for parameter in parameters[1:] if parameter in names] == names
        else None
    )


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _is_method(op: Op, given: Given) -> bool:
    method = getattr(torch.Tensor, op.base, None)
    if not given or given[0][0].name != "self" or not isinstance(given[0][1], Value):
        return False
    plain = (
        not op.base.startswith("_")
        and op.target.startswith("aten.")
        and op.base not in FUNCTION_STYLE
    )
    return plain and inspect.ismethoddescriptor(method)


def _torch_name(op: Op) -> str | None:
    if not op.target.startswith("aten.") or op.base.startswith("_"):
        return None
    for prefix, home in (("linalg_", "linalg"), ("fft_", "fft"), ("special_", "special")):
        name = op.base.removeprefix(prefix)
        if name != op.base and inspect.isbuiltin(getattr(getattr(torch, home), name, None)):
            return f"torch.{home}.{name}"
    return f"torch.{op.base}" if inspect.isbuiltin(getattr(torch, op.base, None)) else None


# By hand

BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@",
    "remainder": "%", "floor_divide": "//",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^",
    "__and__": "&", "__or__": "|", "__xor__": "^",
}  # fmt: skip


def _operand(op: Op, scope: Scope, index: int) -> str:
    """Return the operand or scalar attribute in place ``index`` of the schema."""
    argument, value = _all_given(op)[index]
    return _argument_text(argument, value, scope, lists=False)


def _binary(op: Op, scope: Scope) -> str | None:
    if (
        op.target.split(".")[2] not in ("Tensor", "Scalar", "default")
        or op.attrs.get("alpha", 1) != 1
    ):
        return None
    left, right = _operand(op, scope, 0), _operand(op, scope, 1)
    return f"{left} {BINARY[op.base]} {right}" if isinstance(op.operands[0], Value) else None


def _reversed_sub(op: Op, scope: Scope) -> str | None:
    return (
        f"{_operand(op, scope, 1)} - {_operand(op, scope, 0)}"
        if op.attrs.get("alpha", 1) == 1
        else None
    )


def _power(op: Op, scope: Scope) -> str:
    left, right = _operand(op, scope, 0), _operand(op, scope, 1)
    return f"({left}) ** {right}" if left.startswith("-") else f"{left} ** {right}"


def _negative(op: Op, scope: Scope) -> str:
    return f"-{_operand(op, scope, 0)}"


def _subscript(op: Op, scope: Scope, dim: Attr, index: str) -> str | None:
    source = op.value(0)
    if source is None or not isinstance(dim, int):
        return None
    return f"{scope.text[source]}[{':, ' * (dim % source.type.rank)}{index}]"


def _slice(op: Op, scope: Scope) -> str | None:
    start, stop, step = (op.attrs[name] for name in ("start", "end", "step"))
    begin = "" if start in (None, 0) else attr_text(start)
    end = "" if stop is None or (isinstance(stop, int) and stop >= 2**63 - 1) else attr_text(stop)
    index = f"{begin}:{end}" + ("" if step == 1 else f":{attr_text(step)}")
    return _subscript(op, scope, op.attrs["dim"], index)


def _select(op: Op, scope: Scope) -> str | None:
    return _subscript(op, scope, op.attrs["dim"], attr_text(op.attrs["index"]))


def _index(op: Op, scope: Scope) -> str | None:
    source, indices = op.operands[0], op.operands[1]
    if not isinstance(source, Value) or not isinstance(indices, tuple):
        return None
    # A number inside a tensor would be read as a plain index.
    if any(item is not None and item.type.rank == 0 for item in indices):
        return None
    texts = [":" if item is None else scope.text[item] for item in indices]
    return f"{scope.text[source]}[{', '.join(texts)}]"


def _dropout(op: Op, scope: Scope) -> str:
    rate, flag = attr_text(op.attrs["p"]), attr_text(op.attrs["train"])
    return f"F.dropout({_operand(op, scope, 0)}, {rate}, {flag})"


def _embedding(op: Op, scope: Scope) -> str:
    weight, indices = _operand(op, scope, 0), _operand(op, scope, 1)
    index = op.attrs["padding_idx"]
    options = "" if index == -1 else f", padding_idx={attr_text(index)}"
    for name in ("scale_grad_by_freq", "sparse"):
        options += f", {name}=True" if op.attrs[name] else ""
    return f"F.embedding({indices}, {weight}{options})"


def _batch_norm(op: Op, scope: Scope) -> str:
    """Write functional batch norm.

    In training it counts batches in ``num_batches_tracked`` as the module does.
    """
    source, weight, bias, mean, var = (_operand(op, scope, index) for index in range(5))
    training, momentum = op.attrs["training"], op.attrs["momentum"]
    rate = attr_text(momentum)
    running = op.value(3)
    count = None
    if running is not None and training == MODE:
        count = scope.weights.get(running.name.removesuffix("running_mean") + "num_batches_tracked")
        if count is not None:
            scope.prelude += ["if self.training:", f"    {count}.add_(1)"]
    if momentum is None:
        rate = f"1.0 / float({count}) if self.training else 0.0" if count is not None else "0.0"
    flags = f"training={attr_text(training)}, momentum={rate}, eps={attr_text(op.attrs['eps'])}"
    return f"F.batch_norm({source}, {mean}, {var}, {weight}, {bias}, {flags})"


def _instance_norm(op: Op, scope: Scope) -> str:
    source, weight, bias, mean, var = (_operand(op, scope, index) for index in range(5))
    flags = (
        f"use_input_stats={attr_text(op.attrs['use_input_stats'])}, "
        f"momentum={attr_text(op.attrs['momentum'])}"
    )
    return (
        f"F.instance_norm({source}, {mean}, {var}, {weight}, {bias}, {flags}, "
        f"eps={attr_text(op.attrs['eps'])})"
    )


UPSAMPLE = {
    **{f"upsample_nearest{rank}d": "nearest" for rank in (1, 2, 3)},
    **{f"_upsample_nearest_exact{rank}d": "nearest-exact" for rank in (1, 2, 3)},
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear",
    "_upsample_bilinear2d_aa": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "_upsample_bicubic2d_aa": "bicubic",
    "upsample_trilinear3d": "trilinear",
}


def _interpolate(op: Op, scope: Scope) -> str | None:
    if not op.target.endswith(".vec"):
        return None
    size, factors = op.attrs["output_size"], op.attrs["scale_factors"]
    wanted = f"size={attr_text(size)}" if size is not None else f"scale_factor={attr_text(factors)}"
    text = f'F.interpolate({_operand(op, scope, 0)}, {wanted}, mode="{UPSAMPLE[op.base]}"'
    if "align_corners" in op.attrs:
        text += f", align_corners={attr_text(op.attrs['align_corners'])}"
    return text + (", antialias=True)" if op.base.endswith("_aa") else ")")


def _einsum(op: Op, scope: Scope) -> str | None:
    if op.attrs.get("path") is not None:
        return None
    return f"torch.einsum({attr_text(op.attrs['equation'])}, {scope.operand(op.operands[0])[1:-1]})"


def _split(op: Op, scope: Scope) -> str:
    sizes = _operand(op, scope, 1)
    return f"{_operand(op, scope, 0)}.split({sizes}, dim={attr_text(op.attrs['dim'])})"


def _unflatten(op: Op, scope: Scope) -> str:
    return (
        f"{_operand(op, scope, 0)}.unflatten({attr_text(op.attrs['dim'])}, "
        f"{attr_text(op.attrs['sizes'])})"
    )


def _convert(op: Op, scope: Scope) -> str | None:
    """Write ``x.to(torch.float16)``, for every overload of ``to`` that takes no second tensor."""
    if len(op.operands) != 1:
        return None
    words = []
    for argument, value in _given(op, scope)[1:]:
        left_out = (
            value is None
            or argument.name in ("layout", "pin_memory")
            or _is_default(argument, value)
        )
        if not left_out:
            words.append(f"{argument.name}={attr_text(value, scope.device)}")
    if op.base == "_to_copy":
        words.append("copy=True")
    return f"{_operand(op, scope, 0)}.to({', '.join(words)})"


def _reshape(op: Op, scope: Scope) -> str:
    sizes = op.attrs["size"]
    text = (
        ", ".join(map(attr_text, sizes)) if isinstance(sizes, tuple) and sizes else attr_text(sizes)
    )
    return f"{_operand(op, scope, 0)}.reshape({text})"


def _copy(op: Op, scope: Scope) -> str:
    """Write a copy in place, on a clone: the op itself has no derivative."""
    return f"{_operand(op, scope, 0)}.clone().copy_({_operand(op, scope, 1)})"


def _clone(op: Op, scope: Scope) -> str:
    return f"{_operand(op, scope, 0)}.clone()"


SPECIAL: dict[str, Callable[[Op, Scope], str | None]] = {
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(UPSAMPLE, _interpolate),
    "rsub": _reversed_sub,
    "pow": _power,
    "neg": _negative,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.index.Tensor": _index,
    "dropout": _dropout,
    "aten.embedding.default": _embedding,
    "aten.batch_norm.default": _batch_norm,
    "aten.instance_norm.default": _instance_norm,
    "einsum": _einsum,
    "aten.split.Tensor": _split,
    "aten.split.sizes": _split,
    "aten.split_with_sizes.default": _split,
    "aten.unflatten.int": _unflatten,
    "aten.to.dtype": _convert,
    "aten.to.dtype_layout": _convert,
    "aten.to.device": _convert,
    "aten._to_copy.default": _convert,
    "aten._unsafe_view.default": _reshape,
    "aten.lift_fresh_copy.default": _clone,
    "aten.copy.default": _copy,
}
