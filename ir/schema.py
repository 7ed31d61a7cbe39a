"""PyTorch's own op schemas: operand and attribute names, defaults, and how to call an overload.

Nothing here knows a particular op; printing, parsing, executing and generating code all read the
same schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pruneopt.errors import UserError
from pruneopt.ir.types import Attr, BatchSize, Keyword

__all__ = [
    "Argument",
    "Signature",
    "admit",
    "attr_problem",
    "call",
    "overload",
    "scalar_to_attr",
    "signature",
    "torch_value",
]

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous_format": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
    "preserve_format": torch.preserve_format,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an op's schema."""

    name: str
    type: str
    default: Attr
    has_default: bool
    keyword_only: bool

    @property
    def is_tensor(self) -> bool:
        """True if the argument takes a tensor, an optional tensor, or a list of them."""
        return "Tensor" in self.type


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of an op: tensors become operands, everything else attributes."""

    arguments: tuple[Argument, ...]

    @property
    def operands(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.is_tensor)

    @property
    def attrs(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if not a.is_tensor)


# Those of PyTorch, of torchvision and ours; others only where code of this process names them.
_NAMESPACES = frozenset({"aten", "prims", "torchvision", "pruneopt"})
_VALUES = frozenset({"Tensor", "int", "SymInt", "float", "bool", "number", "str", "Device"})
_ADMITTED: set[str] = set()


def admit(target: str) -> None:
    """Let graphs name an op of another library, because code of this process uses or registers it.

    A graph that is read from a file cannot: it names no op that nobody here has asked for.
    """
    _ADMITTED.add(target.rpartition(".")[0])


@cache
def overload(target: str) -> torch._ops.OpOverload[..., Any]:
    """Return the torch overload a target names.

    Raises `UserError` if this torch (or a missing extension) does not have it, or if it is no pure
    function of tensors and numbers: a graph holds nothing that writes, or that reaches files,
    devices, processes or the interpreter.
    """
    try:
        namespace, base, name = target.split(".")
        found: Any = getattr(getattr(getattr(torch.ops, namespace), base), name)
    except (AttributeError, ValueError, RuntimeError):
        found = None
    if not isinstance(
        found, torch._ops.OpOverload
    ):  # a name like aten.conv2d.overloads is a method
        raise UserError(f"the op {target} does not exist in torch {torch.__version__}")
    if namespace not in _NAMESPACES and f"{namespace}.{base}" not in _ADMITTED:
        raise UserError(
            f"the op {target} is of another library: import it and call "
            f"register_op('{namespace}::{base}', ...) before a graph may name it"
        )
    reason = _impurity(found._schema)
    if reason is not None:
        raise UserError(f"the op {target} {reason}: graphs hold pure functions of tensors only")
    return found


def _impurity(schema: Any) -> str | None:
    """Return in words what keeps an op from being a pure function of tensors, None if it is one."""
    if schema.is_mutable:
        return "writes into its operands"
    taken = [str(argument.type) for argument in schema.arguments]
    made = [str(result.type) for result in schema.returns]
    if not any("Tensor" in kind for kind in made) or not {*map(_inner, made)} <= _VALUES:
        return "gives something else than tensors"
    # A generator cannot be given in a graph, so an op that may take one takes none.
    if not {*map(_inner, taken)} <= _VALUES | {"Generator"}:
        return "takes something else than tensors and numbers"
    qualified = f"{schema.name}.{schema.overload_name}".removesuffix(".")
    # TorchScript's own, such as aten::save, are not the dispatcher's: they reach the interpreter.
    if not torch._C._dispatch_has_kernel(qualified):
        return "is no function of PyTorch's dispatcher"
    # Nothing but the name of a file could be meant.
    if "str" in {*map(_inner, taken)} and not any("Tensor" in kind for kind in taken):
        return "makes a tensor of a text"
    return None


def _inner(kind: str) -> str:
    """Return the type inside of ``Optional[...]`` and ``List[...]``."""
    while kind.endswith("]"):
        kind = kind.partition("[")[2].removesuffix("]")
    return kind


def attr_problem(argument: Argument, attr: Attr) -> str | None:
    """Return in words what keeps an attribute from being a value of an argument's type.

    None if nothing does.
    """
    kind = argument.type
    if kind.startswith("Optional["):
        kind = kind[len("Optional[") : -1]
    items = attr if isinstance(attr, tuple) and "List[" in kind else (attr,)
    kind = _inner(kind)
    for item in items:
        if not _fits(kind, item):
            return f"'{argument.name}' is of type {kind}, which {item!r} is not"
    return None


def _fits(kind: str, attr: Attr) -> bool:
    if attr is None:
        return True  # left out, or a layout, for which the graph has no word
    if isinstance(attr, Keyword):
        words = {"Device": {"device"}, "bool": {"mode"}, "int": {*DTYPES, *MEMORY_FORMATS}}
        return attr.name in words.get(kind, ())
    if isinstance(attr, str):
        return kind == "str"
    if isinstance(attr, float):
        return kind in ("float", "number")
    # A bool is an int to Python; torch takes an int where it says bool.
    return isinstance(attr, int | BatchSize) and kind in (
        "int",
        "SymInt",
        "float",
        "number",
        "bool",
    )


@cache
def signature(target: str) -> Signature:
    """Return the signature of a target."""
    schema: Any = overload(target)._schema
    return Signature(
        tuple(
            Argument(
                argument.name,
                str(argument.type),
                scalar_to_attr(argument.default_value) if argument.has_default_value() else None,
                argument.has_default_value(),
                argument.kwarg_only,
            )
            for argument in schema.arguments
        )
    )


def scalar_to_attr(value: Any) -> Attr:
    """Return a Python, torch or schema value as an attribute."""
    if value is None or isinstance(value, bool | int | float | str | Keyword):
        return value
    if isinstance(value, torch.dtype):
        return Keyword(DTYPE_NAMES[value])
    if isinstance(value, torch.memory_format):
        return Keyword(str(value).removeprefix("torch."))
    if isinstance(value, list | tuple):
        return tuple(scalar_to_attr(item) for item in value)
    if isinstance(value, torch.layout):
        return None
    raise UserError(
        f"an argument of type {type(value).__name__} has no place in the graph ({value!r})"
    )


def torch_value(attr: Attr, batch: int, training: bool, device: torch.device) -> Any:
    """Return what an attribute means to torch, at a batch size, in a mode, on a device."""
    if isinstance(attr, tuple):
        return [torch_value(item, batch, training, device) for item in attr]
    if isinstance(attr, Keyword):
        if attr.name in DTYPES:
            return DTYPES[attr.name]
        if attr.name in MEMORY_FORMATS:
            return MEMORY_FORMATS[attr.name]
        return {"mode": training, "device": device}[attr.name]
    return attr.at(batch) if isinstance(attr, BatchSize) else attr


def call(target: str, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """Call an overload with torch values, each in its schema's place.

    Arguments at their default are left out.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    tensors = iter(operands)
    skipped = False
    for argument in signature(target).arguments:
        value = next(tensors) if argument.is_tensor else attrs[argument.name]
        if (
            argument.has_default
            and (value is None or value == argument.default)
            and not argument.is_tensor
        ):
            skipped = True
        elif argument.keyword_only or skipped:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return overload(target)(*positional, **keywords)
