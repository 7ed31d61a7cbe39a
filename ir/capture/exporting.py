"""Capture through torch.export: the way for whatever a recording cannot be sure of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pruneopt.errors import UserError
from pruneopt.ir.capture.autograd_functions import backward_notes, watched_functions
from pruneopt.ir.capture.reading.exported_program import NotDynamicError, read_program
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.reading.source_lines import short_path
from pruneopt.ir.capture.recording.calls import PLAIN_OUTPUTS
from pruneopt.ir.graph import Graph
from pruneopt.ir.modes import quiet
from pruneopt.ir.verifier import IRError, verify_graph

__all__ = ["exported_graph", "first_line", "load_program", "program_graph"]

REFUSED = {
    "Exporting a ScriptModule": ": it is a TorchScript module; capture the Python module that it "
    "was made from",
    "PackedParams": ": it is quantised, and its packed weights have no channels; prune first, "
    "quantise the result",
}
"""Words of torch.export -> what they mean to the user."""


def exported_graph(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    modules: ModuleTable,
    name: str,
    notes: tuple[str, ...],
    *,
    dynamic_batch: bool,
) -> Graph:
    """Return the graph of ``model(*inputs)`` in evaluation mode, as torch.export traces it.

    With ``dynamic_batch`` the first dimension of every input is ``N`` where the network allows it;
    where not, a note is added. Raises `UserError` when the model cannot be traced.
    """
    inputs = tuple(inputs)
    with watched_functions() as functions:
        if dynamic_batch:
            try:
                program = _export(model, inputs, dynamic=True)
                _check_dynamic(program, size=inputs[0].shape[0])
                own = (*notes, *backward_notes(functions))
                return _checked(read_program(program, modules, name, own))
            except NotDynamicError as reason:
                shape = tuple(inputs[0].shape)
                notes = (*notes, f"the batch size is fixed at {shape[0] if shape else 1}: {reason}")
        program = _export(model, inputs, dynamic=False)
        own = (*notes, *backward_notes(functions))
    try:
        return read_program(program, modules, name, own)
    except NotDynamicError as reason:
        raise UserError(
            f"{type(model).__name__} cannot be captured: {reason}, as after nonzero or "
            "non-maximum suppression; "
            "capture the part before that, with forward=, or a model file that defines "
            "forward(model, *inputs)"
        ) from reason


def program_graph(program: ExportedProgram, name: str) -> Graph:
    """Return the graph of a program that the user exported.

    Raises `UserError` when its sizes depend on more than the batch size.
    """
    try:
        return _checked(read_program(program, None, name, ()))
    except NotDynamicError as reason:
        raise UserError(f"this exported program cannot be captured: {reason}") from reason


def load_program(path: Path, *, trusted: bool) -> ExportedProgram:
    """Read a ``.pt2`` file; raise `UserError` where there is none that this torch can load.

    Loading one may run code that it holds: one that is not ``trusted`` is refused.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not trusted:
        raise UserError(
            f"{path} may run code when PyTorch loads it: give trusted=True if you know who wrote it"
        )
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise UserError(
            f"{path} is not an exported program that this torch can load ({first_line(error)})"
        ) from error


DROPOUTS = {torch.feature_dropout} | {
    getattr(home, name)
    for home in (torch, torch.nn.functional)
    for name in (
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
    )
    if hasattr(home, name)
}


class _DropoutsLeaveTheirInput(TorchFunctionMode):
    """Dropout in evaluation mode returns its very input, and the tracer knows tensors by identity.

    Without a new name for the input, whatever else reads it would read the dropout's result: wrong
    in training. The reader takes the alias for what it names.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (
            func in DROPOUTS
            and args
            and isinstance(args[0], torch.Tensor)
            and not _in_place(func, args, kwargs)
        ):
            args = (torch.ops.aten.alias.default(args[0]), *args[1:])
        return func(*args, **kwargs)


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a dropout of `torch.nn.functional` writes into its input.

    ``inplace`` is its fourth argument.
    """
    return bool(kwargs.get("inplace", args[3] if len(args) > 3 else False))


def _export(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], *, dynamic: bool
) -> ExportedProgram:
    """Return the exported program; raise `NotDynamicError` or `UserError` where there is none."""
    shapes: tuple[Any, ...] | None = None
    if dynamic:
        size = inputs[0].shape[0] if inputs[0].dim() else 0
        batched = [item.dim() > 0 and item.shape[0] == size and size > 0 for item in inputs]
        if not any(batched):
            raise NotDynamicError("the inputs have no common first dimension")
        # torch.export takes sizes 0 and 1 for constants, so a batch of one is traced as two.
        inputs = tuple(
            torch.cat([x, x]) if b and size == 1 else x
            for x, b in zip(inputs, batched, strict=True)
        )
        auto = torch.export.Dim.AUTO
        shapes = tuple({0: auto} if b else None for b in batched)
    dynamic_shapes = _by_parameter(model, shapes) if shapes is not None else None
    try:
        with quiet(), _DropoutsLeaveTheirInput():
            return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        if dynamic:
            raise NotDynamicError(first_line(error)) from error
        _run_plainly(model, inputs)
        raise UserError(f"{type(model).__name__} cannot be captured{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say why torch.export refuses, with the line of the network that no graph can hold."""
    if not isinstance(error, GuardOnDataDependentSymNode):
        known = (reason for word, reason in REFUSED.items() if word in str(error))
        return next(known, f" by torch.export: {first_line(error)}")
    places = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    at = f" at {short_path(Path(places[-1][0]))}:{places[-1][1]}" if places else ""
    return (
        f": it reads the value of a tensor in Python{at}, to decide or to compute with it, which a "
        "graph cannot hold; "
        "compute with tensors there (torch.where), or capture a part of the network (forward=)"
    )


def _check_dynamic(program: ExportedProgram, size: int) -> None:
    """Refuse a program that is right for some batch sizes only.

    Export silently fixes the batch size of some networks.
    """
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    firsts = [shape[0] for shape in shapes if len(shape)]
    free = [
        first
        for first in firsts
        if isinstance(first, torch.SymInt) and first.node.expr.free_symbols
    ]
    # A batch of one was traced as two: an input that stayed at two does not have the user's shape.
    if not free or (size == 1 and len(free) < len(firsts)):
        raise NotDynamicError("the network is written for one batch size")
    for first in free:
        limits = program.range_constraints.get(first.node.expr)
        if limits is None:
            raise NotDynamicError(f"it must be of the form {first}")
        if limits.lower > 2 or limits.upper < 2**16:
            raise NotDynamicError(
                f"the network takes another way outside of {limits.lower} to {limits.upper}"
            )


def _checked(graph: Graph) -> Graph:
    """Return the graph if its sizes hold at more than the example's batch size.

    Export may record one that does not.
    """
    try:
        verify_graph(graph)
    except IRError as error:
        if not graph.dynamic_batch:
            raise
        raise NotDynamicError(
            f"the recorded sizes do not follow it: {first_line(error)}"
        ) from error
    return graph


def _by_parameter(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """Return dynamic shapes in the form export wants.

    A variadic ``forward(*xs)`` takes them as one nested tuple.
    """

    parameters = list(inspect.signature(model.forward).parameters.values())
    variadic = parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    return (shapes,) if variadic else shapes


def _run_plainly(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Run the model once, to report that it fails by itself, or returns unknown structures."""
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(item.shape)) for item in inputs)
        raise UserError(
            f"{type(model).__name__} does not run on example inputs of shape {shapes}: "
            f"{first_line(error)}"
        ) from error
    for leaf in pytree.tree_leaves(outputs):
        if not isinstance(leaf, PLAIN_OUTPUTS):
            kind = type(leaf).__name__
            raise UserError(
                f"{type(model).__name__} cannot be captured: it returns a {kind}, whose tensors "
                "PyTorch cannot find; "
                f"call torch.export.register_dataclass({kind}) first if it is a dataclass, or "
                "return a dictionary "
                "(forward=)"
            )


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
