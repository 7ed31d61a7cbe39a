"""Files for other runtimes: exported programs (``.pt2``) and ONNX, and a way to run the latter.

Both are traced in evaluation mode with a dynamic batch where asked for; a file appears under its
name only when it is whole and checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pruneopt.errors import UserError
from pruneopt.files import atomic_folder, atomic_path
from pruneopt.ir.compare import array_of, difference, tensor_leaves
from pruneopt.ir.export.onnx_compat import keep_padding, lay_out_attention, name_batch
from pruneopt.ir.modes import in_mode, quiet

__all__ = ["export_onnx", "export_pt2", "run_onnx"]

UNGUARDED = 1e-5
"""Largest difference, relative to the largest output, between a program without its guards and its
module."""
SINGLE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights above which ONNX keeps them in a second file (a protocol buffer ends at 2
GB)."""


def export_pt2(
    module: nn.Module,
    example_inputs: Sequence[Tensor] | Tensor,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
) -> None:
    """Write a module as an exported program that `torch.export.load` reads.

    With ``dynamic_batch`` the program runs at every batch size from 1; `UserError` if the module
    does not allow that. The module's mode is left as it was.
    """
    program = _trace(module, _tensors(example_inputs), dynamic_batch, guards=True)
    # torch reports a full disk as a RuntimeError of its zip writer; a plain write says what is
    # wrong.
    buffer = BytesIO()
    path = _named(path, ".pt2")
    with quiet():
        torch.export.save(program, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def export_onnx(
    module: nn.Module,
    example_inputs: Sequence[Tensor] | Tensor,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> None:
    """Write a module as ONNX, checked by `onnx.checker`; ``opset`` None takes torch's own choice.

    The weights lie inside the file unless they exceed 2 GB; then they lie beside it under the
    file's name plus ``.data``. The symbolic batch is called ``batch``. `UserError` names the op
    that ONNX cannot express.
    """
    import onnx

    path = _named(path, ".onnx")
    program = _trace(module, _tensors(example_inputs), dynamic_batch, guards=False)
    lay_out_attention(program)
    onnx_program = _translate(program, opset)
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    large = sum(t.numel() * t.element_size() for t in tensors.values()) > SINGLE_FILE_LIMIT
    with atomic_folder(path) as folder, quiet():
        temporary = folder / path.name
        onnx_program.save(temporary, external_data=large)
        model = onnx.load(temporary, load_external_data=False)
        keep_padding(model)
        if dynamic_batch:
            name_batch(model)
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary))


def run_onnx(
    path: str | os.PathLike[str], inputs: Sequence[Tensor | np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """Return the outputs of an ONNX file on the CPU, in the file's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise UserError(
            f"{os.fspath(path)} cannot be loaded by onnxruntime: {_first_line(error)}"
        ) from error
    names = [item.name for item in session.get_inputs()]
    if len(names) != len(inputs):
        raise UserError(f"{os.fspath(path)} takes {len(names)} inputs, {len(inputs)} were given")
    feed = {name: array_of(item) for name, item in zip(names, inputs, strict=True)}
    try:
        return [np.asarray(item) for item in session.run(None, feed)]
    except Exception as error:
        shapes = ", ".join(str(tuple(item.shape)) for item in feed.values())
        raise UserError(
            f"{os.fspath(path)} does not run on inputs of shape {shapes}: {_first_line(error)}"
        ) from error


# Tracing


def _tensors(inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _named(path: str | os.PathLike[str], suffix: str) -> Path:
    """Return the path, which must end as its format asks: torch and others look at the ending."""
    if Path(path).suffix != suffix:
        raise UserError(f"{os.fspath(path)} must end in {suffix}")
    return Path(path)


def _trace(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool, *, guards: bool
) -> ExportedProgram:
    """Return the module in evaluation mode as an exported program.

    ``guards`` tells whether it is kept with its guards.
    """
    shapes: tuple[dict[int, Any] | None, ...] | None = None
    if dynamic_batch:
        size = inputs[0].shape[0] if inputs and inputs[0].dim() else 0
        batched = [item.dim() > 0 and item.shape[0] == size > 0 for item in inputs]
        if not any(batched):
            raise UserError(
                "a dynamic batch needs inputs with a common first dimension; pass "
                "dynamic_batch=False"
            )
        # torch.export takes a size of one for a constant: a batch of one is traced as two.
        inputs = tuple(
            torch.cat([x, x]) if b and size == 1 else x
            for x, b in zip(inputs, batched, strict=True)
        )
        shapes = tuple({0: Dim.AUTO} if b else None for b in batched)
    try:
        with quiet(), torch.no_grad(), in_mode(module):
            program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} cannot be traced by torch.export: {_first_line(error)}"
        ) from error
    if dynamic_batch:
        _check_batch(program, module, inputs, batched, guards)
    return program


def _check_batch(
    program: ExportedProgram,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    batched: list[bool],
    guards: bool,
) -> None:
    """Raise `UserError` if the program does not run at any batch size.

    It must have no upper limit, and run at a batch of one and at another one.

    The lower limits that torch writes down do not tell: it writes 2 where 1 runs as well.
    """
    limits = [
        str(found.upper)
        for found in program.range_constraints.values()
        if str(found.upper) != "int_oo"
    ]
    reason = f"at most {limits[0]}" if limits else ""
    for take in (lambda x: x[:1], lambda x: torch.cat([x, x[:1]])):
        given = [take(x) if b else x for x, b in zip(inputs, batched, strict=True)]
        try:
            with quiet(), torch.no_grad():
                program.module()(*given)
        except Exception as error:
            if guards or not _runs_unguarded(program, module, given):
                reason = reason or _first_line(error)
    if reason:
        name = type(module).__name__
        raise UserError(
            f"{name} does not run at every batch size ({reason}); pass dynamic_batch=False"
        )


def _runs_unguarded(program: ExportedProgram, module: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Tell whether a program gives what its module gives without the guards that torch notes.

    Torch has noted that some size, such as the sum of two batches, is not one; an ONNX file holds
    no such notes.
    """
    try:
        with quiet(), torch.no_grad(), in_mode(module):
            got, wanted = program.module(check_guards=False)(*inputs), module(*inputs)
    except Exception:
        return False
    pairs = zip(tensor_leaves(got), tensor_leaves(wanted), strict=True)
    return all(error <= UNGUARDED * size for error, size in (difference(a, b) for a, b in pairs))


# ONNX


def _translate(program: ExportedProgram, opset: int | None) -> Any:
    try:
        found = _onnx_program(program, opset, optimize=True)
    except Exception as error:
        try:  # the folding of constants fails on some files that are right without it
            found = _onnx_program(program, opset, optimize=False)
        except Exception:
            reason = f"the op {_failing_op(error)}" if _failing_op(error) else _first_line(error)
            raise UserError(
                f"ONNX cannot express this network: {reason} has no translation"
            ) from error
    if found is None:
        raise UserError("ONNX export gave no program")
    return found


def _onnx_program(program: ExportedProgram, opset: int | None, *, optimize: bool) -> Any:
    with quiet():
        return torch.onnx.export(
            program, (), None, dynamo=True, opset_version=opset, verbose=False, optimize=optimize
        )


def _failing_op(error: BaseException | None) -> str | None:
    """Return the op that an exporter's error speaks of; the innermost error that names one."""
    name = None
    while error is not None:
        match = re.search(
            r"OpOverload\(op='([\w.:]+)', overload='(\w+)'\)|\b(aten[.:]+\w+(?:\.\w+)?)", str(error)
        )
        if match:
            name = f"{match[1]}.{match[2]}" if match[1] else match[3]
        error = error.__cause__ or error.__context__
    return name


# Small things


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
