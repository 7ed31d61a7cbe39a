"""Find where the code of a user's module does not follow the sizes of its weights."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import PruneoptError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph, Op
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.apply.tensors import Owned

__all__ = ["CutModule", "Difference", "difference_from", "error_message", "first_difference"]

FEW = 4
"""A message advises to keep no more groups than this."""


@dataclass(frozen=True)
class CutModule:
    """A user's module with its weights cut, and the pruned network that it must be.

    Attributes:
        model: the module; ``forward`` is called in the place of its own where given, as in
            `capture`.
        owned: its tensors by the names of the network's weights.
        graph: the pruned network; ``cut`` is the plain slice of ``coupling.graph``, op by op.
        cuts: the groups that lose channels.
    """

    model: nn.Module
    forward: Callable[..., Any] | None
    owned: Sequence[Owned]
    graph: Graph
    coupling: Coupling
    cut: Graph
    cuts: frozenset[str]


@dataclass(frozen=True)
class Difference:
    """A place where the module's code does something else, and the ops there, where known."""

    what: str
    ops: tuple[Op, ...]


def error_message(cut_module: CutModule, difference: Difference) -> str:
    """Return what is wrong, and what to do about it."""
    groups = _groups_at(cut_module, difference.ops)
    keep = (
        f", or keep these channels when pruning, with ignore={groups}"
        if 0 < len(groups) <= FEW
        else ""
    )
    return f"{difference.what}. The module is as it was before: use result.module{keep}"


def _groups_at(cut_module: CutModule, ops: Sequence[Op]) -> list[str]:
    """Return the groups that lose channels in what ops read and make before the cut."""
    numbers: set[int] = set()
    for value in (value for op in ops for value in (*op.inputs, *op.results)):
        for slot in cut_module.coupling.slots_of(value):
            units = slot.units[slot.units >= 0]
            numbers.update(cut_module.coupling.unit_group[units].tolist())
    return [
        group.name
        for i, group in enumerate(cut_module.coupling.groups)
        if i in numbers and group.name in cut_module.cuts
    ]


def difference_from(cut_module: CutModule, error: Exception) -> Difference:
    """Return the innermost line of the user's code that an error came through, with its module."""
    paths = {id(module): path for path, module in cut_module.model.named_modules()}
    module, line = "", None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            module = paths[id(owner)]
        if not _is_ours(frame.f_code.co_filename):
            line = (frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    reason = " ".join(traceback.format_exception_only(error)[-1].split())
    kind = type(cut_module.model.get_submodule(module)).__name__
    where = f"module {module} ({kind})" if module else f"module {kind}"
    at = f" at {line[0]}:{line[1]}" if line else ""
    here = [op for op in cut_module.coupling.graph.ops if op.loc.module == module]
    ops = [op for op in here if line and _is_at(op, *line)] or here
    what = f"{where} cannot run at the smaller sizes{at}, where its code seems to fix one: {reason}"
    return Difference(what, tuple(ops))


def _is_ours(file: str) -> bool:
    """Return whether code is that of torch or of this package."""
    homes = (Path(torch.__file__).parent, Path(__file__).resolve().parents[1])
    return file.startswith("<") or any(home in Path(file).resolve().parents for home in homes)


def _is_at(op: Op, file: str, line: int) -> bool:
    return op.loc.line == line and bool(op.loc.file) and Path(file).as_posix().endswith(op.loc.file)


def first_difference(cut_module: CutModule, inputs: Sequence[Tensor]) -> Difference:
    """Return the first op at which the module, captured anew, differs from the cut graph."""
    device = next((item.tensor.device for item in cut_module.owned), None)
    try:
        given = [item.to(device) for item in inputs]
        now = capture(
            cut_module.model,
            given,
            dynamic_batch=cut_module.cut.dynamic_batch,
            forward=cut_module.forward,
            check=False,  # it is known to differ: the question is where
        )
    except PruneoptError as error:
        return Difference(
            f"{type(cut_module.model).__name__} cannot be captured at the smaller sizes ({error})",
            (),
        )
    for old, wanted, mine in zip(
        cut_module.coupling.graph.ops, cut_module.cut.ops, now.ops, strict=False
    ):
        alike = [value.type.plain() for value in wanted.results] == [
            value.type.plain() for value in mine.results
        ]
        if (
            alike and has_trait(wanted, Trait.SPLIT) and has_trait(mine, Trait.SPLIT)
        ):  # the same parts, however they are asked for
            continue
        if wanted.target != mine.target:
            return Difference(
                f"{mine} is {mine.base}, where the pruned network has {wanted.base}", (old,)
            )
        differing = [name for name in wanted.attrs if wanted.attrs[name] != mine.attrs.get(name)]
        if differing:
            name = differing[0]
            return Difference(
                f"{mine} has {name}={mine.attrs.get(name)}, where the pruned network has "
                f"{wanted.attrs[name]}: the "
                "code there computes it from a size, or fixes it",
                (old,),
            )
        if not alike:
            return Difference(f"{mine} gives another shape than in the pruned network", (old,))
    return Difference(
        f"{type(cut_module.model).__name__} gives another result than the pruned network", ()
    )
