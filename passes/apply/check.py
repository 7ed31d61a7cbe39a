"""Proof that a user's module, cut in place, computes what the pruned network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.calling import calling
from pruneopt.errors import UserError
from pruneopt.ir.compare import difference, tensor_leaves
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.modes import in_mode
from pruneopt.ir.module_state import state_restored
from pruneopt.passes.apply.diagnosis import (
    CutModule,
    difference_from,
    error_message,
    first_difference,
)
from pruneopt.passes.apply.undo import borrowed
from pruneopt.passes.graph_rewrites.verify import analysis_rows, evaluate, random_inputs, varied

__all__ = ["Rehearsal", "check_same"]

DOUBLE = 1e-6
"""Largest error in float64, relative to the largest output. Code that computes in float32 by itself
is checked so."""
SINGLE = 1e-3
ROUNDING = 1e-12


def check_same(cut_module: CutModule, inputs: Sequence[Tensor] | None) -> None:
    """Run both on the same input, in evaluation mode; in float64, or as the module is if it must.

    They run with the weights as they are, and with varied ones, so that no difference hides behind
    weights that are zero or alike, nor behind signals that variation makes large.

    Raises:
        UserError: the module fails, or gives something else; it names the place.
    """
    native = next(
        (item.tensor.dtype for item in cut_module.owned if item.tensor.is_floating_point()),
        torch.float32,
    )
    failure: Exception | None = None
    # Float64 first: rounding then hides nothing. Code that makes float32 tensors fails there.
    for dtype in dict.fromkeys((torch.float64, native)):
        given = _inputs(cut_module, inputs, dtype)
        exact = dtype == torch.float64 and not _casts(cut_module.graph)
        try:
            same = all(
                _agree(cut_module, weights, given, exact) for weights in _weights(cut_module, dtype)
            )
        except _CannotRunError as error:
            failure = error.reason
            continue
        if not same:
            raise UserError(
                error_message(
                    cut_module, first_difference(cut_module, _inputs(cut_module, None, native))
                )
            )
        return
    assert failure is not None
    raise UserError(error_message(cut_module, difference_from(cut_module, failure))) from failure


class _CannotRunError(Exception):
    """The user's module failed."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _agree(
    cut_module: CutModule, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], exact: bool
) -> bool:
    """Return whether both give the same with these weights."""
    try:
        got = _outputs(cut_module, weights, inputs)
    except Exception as error:  # the user's code may raise anything
        raise _CannotRunError(error) from error
    return _same(_wanted(cut_module.graph, weights, inputs), got, DOUBLE if exact else SINGLE)


@torch.no_grad()
def _wanted(graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    double = any(tensor.dtype == torch.float64 for tensor in weights.values())

    def in_double(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        return evaluate(op, operands, True)

    return tensor_leaves(Interpreter(graph, in_double if double else None).run(weights, *inputs))


def _weights(cut_module: CutModule, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yield the weights as they are, and varied; on the device of the module."""
    own = {item.name: item.tensor.detach() for item in cut_module.owned}
    yield {
        name: _cast(tensor, dtype) for name, tensor in {**cut_module.graph.weights, **own}.items()
    }
    other = {name: tensor.to(own[name].device) for name, tensor in varied(own, 0).items()}
    yield {
        name: _cast(tensor, dtype) for name, tensor in {**cut_module.graph.weights, **other}.items()
    }


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _inputs(
    cut_module: CutModule, given: Sequence[Tensor] | None, dtype: torch.dtype
) -> list[Tensor]:
    """Return what both run on, on the device of the module."""
    device = next((item.tensor.device for item in cut_module.owned), None)
    if given is None:
        rows = random_inputs(cut_module.graph, 0)
    else:
        rows = [
            analysis_rows(value, tensor)
            for value, tensor in zip(cut_module.graph.inputs, given, strict=True)
        ]
    return [
        item.to(device, dtype) if item.is_floating_point() else item.to(device) for item in rows
    ]


def _outputs(
    cut_module: CutModule, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Return what the module gives with other weights; it is left as it was."""
    with (
        state_restored(cut_module.model),
        in_mode(cut_module.model),
        torch.no_grad(),
        borrowed() as undo,
        calling(cut_module.model, cut_module.forward),
    ):
        for item in cut_module.owned:
            # The module's own elements stay untouched, whatever a forward does to buffers.
            undo.set_data(item.tensor, weights[item.name].clone(), item.tensor.grad)
        return tensor_leaves(cut_module.model(*inputs))


class Rehearsal:
    """A forward pass in training mode, of a module with weights for training (auxiliary heads).

    They were not cut, so they may no longer fit what they read: what ran before the cut must run
    after it.
    """

    def __init__(self, cut_module: CutModule, inputs: Sequence[Tensor] | None) -> None:
        known = {id(item.tensor) for item in cut_module.owned}
        self.cut_module = cut_module
        self.left = [
            name for name, param in cut_module.model.named_parameters() if id(param) not in known
        ]
        native = next(
            (item.tensor.dtype for item in cut_module.owned if item.tensor.is_floating_point()),
            torch.float32,
        )
        self.inputs = _inputs(cut_module, inputs, native)
        try:
            self.worth = bool(self.left) and self._run()
        except Exception:  # it needs more than inputs, such as targets: nothing can be said
            self.worth = False

    def _run(self) -> bool:
        model = self.cut_module.model
        with (
            state_restored(model),
            in_mode(model, training=True),
            torch.no_grad(),
            borrowed() as undo,
        ):
            # Training mode writes running statistics.
            for buffer in model.buffers():
                undo.set_data(buffer, buffer.detach().clone(), buffer.grad)
            model(*self.inputs)
        return True

    def repeat(self) -> None:
        """Raise `UserError` if what ran before no longer does."""
        if self.worth:
            try:
                self._run()
            except Exception as error:
                difference = difference_from(self.cut_module, error)
                raise UserError(
                    f"{self.left[0]} takes no part in evaluation, so it was not cut, and training "
                    "needs it: "
                    f"{error_message(self.cut_module, difference)}"
                ) from error


def _same(wanted: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> bool:
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
        return False
    apart = [difference(left, right) for left, right in zip(wanted, got, strict=True)]
    return all(error <= tolerance * scale + ROUNDING for error, scale in apart)


def _casts(graph: Graph) -> bool:
    """Return whether an op asks for a float type that is not that of the network."""
    names = {getattr(attr, "name", None) for op in graph.ops for attr in op.attrs.values()}
    return not names.isdisjoint(("f32", "f16", "bf16"))
