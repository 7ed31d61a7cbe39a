"""One run of a module on tensors without data, written down call by call.

Nothing is computed: parameters, buffers and inputs are replaced by meta tensors for the time of the
run, and every ATen call that the module makes is recorded before PyTorch decomposes it, as
torch.export does, but without fake tensors, symbols and proxies. What cannot be recorded faithfully
(a value is read, a tensor comes from nowhere, the module changes its own state) raises
`CannotRecordError`; the module is always left as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt.ir.capture.reading.exported_program import RECURRENT
from pruneopt.ir.capture.reading.source_lines import TORCH_HOME
from pruneopt.ir.capture.recording.calls import META, PLAIN_OUTPUTS, Call, Recording, Ref
from pruneopt.ir.capture.recording.interception import intercept_calls
from pruneopt.ir.capture.recording.known_functions import Shape, result_shape
from pruneopt.ir.capture.recording.module_state import CannotRecordError, in_place_of_tensors
from pruneopt.ir.capture.recording.per_sample import is_samplewise

__all__ = ["Recorder", "record"]

INSIDE = f"{TORCH_HOME}/"
SHAPE_OF_FIRST = frozenset(
    (
        *("batch_norm", "instance_norm", "group_norm", "layer_norm"),
        *("relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
        *("silu", "gelu", "mish", "elu", "leaky_relu"),
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    )
)
"""Ops whose one result is a new tensor with the first operand's shape and dtype (a dropout, too, in
training), which PyTorch derives slowly.
"""
SHAPE_CACHED = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "linear", "matmul", "scaled_dot_product_attention"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "softmax", "add", "mul", "sub", "div"),
    )
)
"""Ops that always give one new tensor: calls alike are run once."""


def record(
    model: nn.Module, weights: Mapping[str, Tensor], runs: Sequence[Sequence[Tensor]]
) -> list[Recording]:
    """Record the calls that ``model(*inputs)`` makes, for each of several inputs.

    Only for the first where that run is `Recording.samplewise`. ``weights`` are meta tensors for
    all parameters and buffers, by qualified name; inputs are meta tensors, with one entry for each
    sample along their first dimension.
    """
    paths = _paths(model)
    with in_place_of_tensors(model, weights):
        try:
            found = [_run(model, paths, weights, runs[0])]
            if not found[0].samplewise:
                found += [
                    _run(model, paths, weights, inputs, limit=len(found[0].steps))
                    for inputs in runs[1:]
                ]
            return found
        except CannotRecordError:
            raise
        except Exception as error:
            raise CannotRecordError(f"{type(error).__name__}: {error}") from error


def _run(
    model: nn.Module,
    paths: Mapping[int, str],
    weights: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    limit: int | None = None,
) -> Recording:
    recorder = Recorder(paths, weights, inputs, limit)
    with intercept_calls(recorder):
        outputs = model(*inputs)
    recorder.finish(outputs)
    return recorder.recording


class Recorder:
    """The calls of one run, and where every tensor came from.

    At most ``limit`` calls: a loop over the rows of a large batch would never end.
    """

    def __init__(
        self,
        paths: Mapping[int, str],
        weights: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        limit: int | None,
    ) -> None:
        self.recording = Recording()
        self.limit = limit
        self.modules: list[tuple[str, str]] = []
        self.paths = paths
        self._weights = weights
        self._refs: dict[int, Ref] = {}
        self._alive: list[Tensor] = []
        """Keeps the numbers by which tensors are known from being given out again."""
        named = [
            *weights.items(),
            *((f"input {number}", tensor) for number, tensor in enumerate(inputs)),
        ]
        for name, tensor in named:
            self._note(tensor, Ref(name))
        self._known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
        """The results of calls that were run, for calls alike (`SHAPE_CACHED`)."""
        self._fixed = {tensor.untyped_storage()._cdata for _, tensor in named}
        """The memory of weights and inputs, which no call may write into."""

    def _note(self, tensor: Tensor, ref: Ref) -> None:
        self._refs[id(tensor)] = ref
        self._alive.append(tensor)

    def alias_last_result(self, tensor: Tensor, name: str) -> None:
        """Take a tensor for the result of the last call, if that was of the op ``name``.

        Functions that make tensors (``zeros``) return another object than the ATen call gave them.
        """
        steps = self.recording.steps
        if id(tensor) not in self._refs and steps:
            last = steps[-1]
            if (
                isinstance(last, Call)
                and last.target._overloadpacket.__name__ == name
                and len(last.results) == 1
            ):
                self._note(tensor, Ref(len(steps) - 1))

    def _ref(self, tensor: Tensor) -> Ref:
        ref = self._refs.get(id(tensor))
        if ref is None:
            raise CannotRecordError("a tensor is used that is no parameter, buffer or input")
        return ref

    def _written(self, item: Any) -> Any:
        """Return an argument with every tensor replaced by where it came from."""
        if isinstance(item, Tensor):
            return self._ref(item)
        if isinstance(item, tuple | list):
            return tuple(map(self._written, item))
        return item

    def _is_batched(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has the samples along its first dimension.

        In a samplewise run all but weights have.
        """
        ref = self._refs.get(id(tensor))
        return ref is not None and ref.source not in self._weights

    def record_known_call(
        self, target: torch._ops.OpOverload[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """Record a call that a module or function of torch is known to make; return its result."""
        recording = self.recording
        recording.samplewise = recording.samplewise and is_samplewise(
            target, args, self._is_batched
        )
        return self._call(target, args, {}, result_shape(target, args))

    def record_dispatched_call(
        self,
        target: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Record a call met in PyTorch's dispatcher; return its result.

        Nobody knows what led to it, so the run is not samplewise.
        """
        self.recording.samplewise = False
        return self._call(target, args, kwargs)

    def _call(
        self,
        target: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shape: Shape | None = None,
    ) -> Any:
        """Record a call and make it.

        ``shape`` is that of its result, where it is known (see `result_shape`).
        """
        # Autocast converts operands below the place where calls are seen: none would be recorded.
        if torch._C._is_any_autocast_enabled():
            raise CannotRecordError("autocast is on")
        if self.limit is not None and len(self.recording.steps) >= self.limit:
            raise CannotRecordError("the calls depend on the batch size")
        if target._overloadpacket.__name__ in RECURRENT:
            raise CannotRecordError(
                f"{target} is taken step by step, and its steps may be the first dimension"
            )
        if target._schema.is_mutable:
            self._check_written(target, args, kwargs)
        # Before the call is made: one in place lets its first operand stand for the result.
        written = tuple(map(self._written, args))
        named = {name: self._written(item) for name, item in kwargs.items()}
        result = self._result(target, args, kwargs, shape)
        several = isinstance(result, tuple | list)
        results = list(result) if several else [result]
        if not all(item is None or isinstance(item, Tensor) for item in results):
            raise CannotRecordError(f"{target} gives no tensor")
        number = len(self.recording.steps)
        types = tuple(None if item is None else (item.dtype, item.shape) for item in results)
        module = self.modules[-1] if self.modules else ("", "")
        # Looking for the line takes time, and the first run has told it.
        place = _user_line() if self.limit is None else ("", 0)
        self.recording.steps.append(Call(target, written, named, types, several, *module, *place))
        for index, item in enumerate(results):
            if item is not None:
                self._note(item, Ref(number, index))
        return result

    def _result(
        self,
        target: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shape: Shape | None,
    ) -> Any:
        """Return what a call gives; run nothing where that is known."""
        if _writes_in_place(target):
            return args[0]  # there is no data to write
        # Neither seen again nor with a graph for gradients: both cost more than the call itself.
        with torch._C._DisablePythonDispatcher(), torch._C._AutoDispatchBelowAutograd():
            if shape is not None:
                first = args[0] if isinstance(args[0], Tensor) else args[0][0]
                return torch.empty(shape, dtype=first.dtype, device=META)
            name = target._overloadpacket.__name__
            if name in SHAPE_OF_FIRST:
                first = args[0]
                # A layer norm's result is contiguous; the others keep the strides of their input.
                if first.is_contiguous() or name == "layer_norm":
                    return torch.empty(first.shape, dtype=first.dtype, device=META)
                return torch.empty_like(first)
            key = _key(target, args, kwargs) if name in SHAPE_CACHED else None
            known = self._known.get(key) if key is not None else None
            if known is not None:
                return torch.empty_strided(known[0], known[1], dtype=known[2], device=META)
            result = target(*args, **kwargs)
        if key is not None and isinstance(result, Tensor):
            self._known[key] = (result.shape, result.stride(), result.dtype)
        return result

    def _check_written(
        self,
        target: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Refuse to write into an input or a weight, under whatever view."""
        for position, argument in enumerate(target._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            tensors = given if isinstance(given, tuple | list) else [given]
            if any(isinstance(item, Tensor) and self._is_fixed(item) for item in tensors):
                raise CannotRecordError(f"{target} writes into an input or a weight")

    def _is_fixed(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._fixed

    def finish(self, outputs: Any) -> None:
        """Record what the run returned."""
        leaves, self.recording.spec = pytree.tree_flatten(outputs)
        if not all(isinstance(leaf, PLAIN_OUTPUTS) for leaf in leaves):
            raise CannotRecordError("an output is no tensor, number or text")
        self.recording.leaves = [self._written(leaf) for leaf in leaves]


@cache
def _writes_in_place(target: torch._ops.OpOverload[..., Any]) -> bool:
    """Tell whether a call writes into its first operand, returns it, and keeps its shape."""
    schema = target._schema
    writes = [argument for argument in schema.arguments if argument.alias_info is not None]
    # The name alone is no sign: `resize_`, `set_` and `transpose_` change the tensor's shape.
    return (
        schema.name.endswith("_")
        and torch.Tag.inplace_view not in target.tags
        and "resize" not in schema.name
        and "set_" not in schema.name
        and len(schema.returns) == len(writes) == 1
        and schema.returns[0].alias_info is not None
        and writes[0] is schema.arguments[0]
        and str(writes[0].type) == "Tensor"
    )


def _key(
    target: torch._ops.OpOverload[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Return a key that is equal for calls with results alike; None where arguments have none.

    A result is its shape, strides and dtype here, as nothing reads values.

    As long as nothing reads values: a result is its shape, strides and dtype.
    """

    def described(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.shape, item.stride(), item.dtype
        if isinstance(item, tuple | list):
            return tuple(map(described, item))
        return type(item), item

    return (
        target,
        *map(described, args),
        *((name, described(item)) for name, item in kwargs.items()),
    )


def _paths(model: nn.Module) -> dict[int, str]:
    """Return the first qualified name of every module, by identity."""
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotRecordError(f"{path} is a TorchScript module")
        paths[id(module)] = path
    return paths


_passed_over: dict[CodeType, bool] = {}
"""A function's code -> True if its lines are not the user's: asked at every frame of a call."""


def _user_line() -> tuple[str, int]:
    """Return file and line of the innermost `forward` outside PyTorch that led to the call.

    As torch.export tells it.
    """
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        inside = _passed_over.get(code)
        if inside is None:
            name = code.co_filename
            # A line in a helper of the user's is passed over, too: torch.export names the forward.
            inside = _passed_over[code] = code.co_name != "forward" or name.startswith(INSIDE)
        if not inside:
            return code.co_filename, frame.f_lineno
        if code is _run.__code__:
            break  # what called capture is nothing to the network
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0
