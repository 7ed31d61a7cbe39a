"""Proof that a sliced network is the original with channels removed.

The original graph runs at full size with the weight elements that *consume* removed channels set to
zero (never the producers: sigmoid(0) is not 0). The kept elements of *every* value must equal the
sliced network's to float rounding, so that no signal that dies out in depth can hide a misplaced
channel. Where a statistic runs over removed channels (layer norm, softmax, a mean over channels)
the function changes by construction: there the reference takes the statistic over the kept
channels, so that everything else is still proved, and the report names the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError, VerificationError
from pruneopt.ir.compare import examined
from pruneopt.ir.finite import all_finite, holds_infinity, may_hold_infinity
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.schema import DTYPES, call, torch_value
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.labels import BATCH
from pruneopt.passes.analysis.channels.sizes import gather_kept, kept_mask, kept_parts
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weights
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.graph_rewrites.slice import slice_weights

__all__ = [
    "EXACT",
    "TINY",
    "MaskedOriginal",
    "Verification",
    "analysis_rows",
    "evaluate",
    "perturbed",
    "random_inputs",
    "varied",
    "verify_pruned",
]

HALF_AND_SINGLE = (torch.float16, torch.bfloat16, torch.float32)
EXACT = 1e-7
"""Largest error of any value in the float64 proof, relative to the largest kept element of that
value."""
TINY = 1e-13
"""Absolute error that is rounding whatever the magnitude."""
SINGLE = 1e-3
"""Largest error on real input in float32, relative to the largest output; larger errors are no
rounding."""


@dataclass(frozen=True)
class Verification:
    """The proof. Errors are absolute; ``scale`` is the largest absolute output they compare
    with."""

    max_abs_error: float
    scale: float
    equivalent: bool
    notes: tuple[str, ...]
    max_abs_error_float32: float | None = None
    """On the given (real) input in float32; None without input."""


class MaskedOriginal:
    """The original network at full size in which removed channels are consumed as zeros."""

    def __init__(self, original: Graph, coupling: Coupling, plan: Plan, pruned: Graph) -> None:
        self.original, self.coupling = original, coupling
        self.kept = coupling.kept_units(plan)
        self.twin = dict(zip(coupling.graph.ops, pruned.ops, strict=True))
        self._boxed = {note.op for note in coupling.notes}
        self._interpreter = Interpreter(coupling.graph, self._override)
        self._small: dict[str, Tensor] = {}
        self._double = False

    def steps(
        self, weights: Mapping[str, Tensor], *inputs: Tensor
    ) -> Generator[tuple[Op, Sequence[Any]], None, Any]:
        """Run at the original's size, op by op, from the original's weights; returns the
        outputs."""
        self._double = _is_double(inputs, weights)
        # A statistic over kept channels alone reads weights of their number.
        boxed = {value.name for op in self._boxed for value in op.inputs if value.is_weight}
        self._small = slice_weights(
            self.coupling, self.kept, {name: weights[name] for name in boxed}
        )
        return self._interpreter.steps(weights, *inputs)

    def mask(self, value: Value, shape: tuple[int, ...]) -> Tensor:
        """Return which elements of a value are kept."""
        return kept_mask(self.coupling.slots_of(value), shape, self.kept)

    def keep(self, value: Value, tensor: Tensor) -> Tensor:
        """Return the kept elements of a value."""
        return gather_kept(tensor, self.coupling.slots_of(value), self.kept)

    def _override(self, op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        if op in self._boxed:
            return self._run_on_kept(op, operands)
        # Zeros are put where channels are consumed, never where they are made: sigmoid(0) is not 0.
        if has_trait(op, Trait.CONTRACTS_OPERANDS):
            for index, operand in enumerate(op.operands):
                operands[index] = self._zero_operand(operand, operands[index])
        elif read := {
            layer.value: layer.in_axis for layer in layer_weights(op) if layer.in_axis is not None
        }:
            for index, operand in enumerate(op.operands):
                operands[index] = self._zero_read(operand, operands[index], read)
        return self._evaluate(op, operands)

    def _evaluate(self, op: Op, operands: list[Any]) -> Any:
        try:
            return evaluate(op, operands, self._double)
        except (RuntimeError, TypeError, ValueError) as error:
            if "." not in op.base:  # an op of PyTorch
                raise
            kind = " in float64" if self._double else ""
            raise UserError(
                f"{op} does not run on the CPU{kind}, which the proof needs ({error})"
            ) from error

    def _zero_operand(self, operand: Operand, tensor: Any) -> Any:
        """Return an operand of a product of activations, in which removed elements count as
        zero."""
        if isinstance(operand, Value):
            return self._zero(operand, tensor)
        if isinstance(operand, tuple):
            return [
                self._zero_operand(value, item) for value, item in zip(operand, tensor, strict=True)
            ]
        return tensor

    def _zero_read(self, operand: Operand, tensor: Any, read: Mapping[Value, int]) -> Any:
        """Return a weight of a layer, in which what it would read of removed channels counts as
        zero."""
        if isinstance(operand, tuple):
            return [
                self._zero_read(value, item, read)
                for value, item in zip(operand, tensor, strict=True)
            ]
        if isinstance(operand, Value) and operand in read:
            return self._zero(operand, tensor, read[operand])
        return tensor

    def _zero(self, value: Value, tensor: Tensor, axis: int | None = None) -> Tensor:
        """Return a tensor with its removed elements at zero: all of them, or those removed along
        one axis."""
        # A plane over several axes (groups, inputs of one group) counts for its last one.
        slots = [
            slot for slot in self.coupling.slots_of(value) if axis is None or axis == slot.axes[-1]
        ]
        for part in kept_parts(slots, self.kept):
            if not part.all():
                tensor = torch.where(
                    part.to(tensor.device), tensor, torch.zeros((), dtype=tensor.dtype)
                )
        return tensor

    def _run_on_kept(self, op: Op, operands: list[Any]) -> Any:
        """Run a statistic over the kept elements only, and put the result back where those elements
        were."""
        twin = self.twin[op]
        pairs = zip(op.operands, operands, strict=True)
        small = [self._small_operand(operand, tensor) for operand, tensor in pairs]
        result = evaluate(twin, small, self._double)
        full = []
        results = result if isinstance(result, tuple | list) else [result]
        for value, tensor in zip(op.results, results, strict=True):
            shape = value.type.shape(BATCH)
            scattered = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
            scattered[self.mask(value, shape).to(tensor.device)] = tensor.reshape(-1)
            full.append(scattered)
        return full if isinstance(result, tuple | list) else full[0]

    def _small_operand(self, operand: Operand, tensor: Any) -> Any:
        if isinstance(operand, tuple):
            return [
                self._small_operand(value, item)
                for value, item in zip(operand, tensor, strict=True)
            ]
        if not isinstance(operand, Value):
            return tensor
        return self._small[operand.name] if operand.is_weight else self.keep(operand, tensor)


def evaluate(op: Op, operands: list[Any], double: bool) -> Any:
    """Run an op in evaluation mode, at the batch size of the analysis; with ``double``, in float64
    throughout."""
    device = next(
        (item.device for item in operands if isinstance(item, Tensor)), torch.device("cpu")
    )
    attrs = {name: torch_value(attr, BATCH, False, device) for name, attr in op.attrs.items()}
    if "momentum" in attrs and attrs["momentum"] is None:
        attrs["momentum"] = 0.0  # not read in evaluation mode
    if double:
        attrs = {
            name: torch.float64 if attr in HALF_AND_SINGLE else attr for name, attr in attrs.items()
        }
    result = call(op.target, operands, attrs)
    if not isinstance(result, tuple | list):
        return _to_double(result) if double else result
    return [_to_double(item) if double else item for item in result]


def _is_double(inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether a run is in float64: the inputs say so or, where all of them are whole
    numbers, the weights."""
    floating = [tensor for tensor in inputs if tensor.is_floating_point()]
    if floating:
        return any(tensor.dtype == torch.float64 for tensor in floating)
    return all(
        weight.dtype == torch.float64 for weight in weights.values() if weight.is_floating_point()
    )


def _to_double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def verify_pruned(
    original: Graph,
    coupling: Coupling,
    plan: Plan,
    pruned: Graph,
    inputs: Sequence[Tensor] | None = None,
    *,
    seed: int = 0,
) -> Verification:
    """Prove ``pruned`` in float64 on random input, and in float32 on ``inputs`` where given.

    The float64 proof runs on perturbed weights, so that channels with equal weights (a freshly
    initialised batch norm) cannot hide a misplaced channel. Raises `VerificationError` that names
    the first op at which the networks part.
    """
    notes = tuple(
        f"{note.op}: runs over removed channels of {', '.join(note.groups)}; the function changes "
        "by construction"
        for note in coupling.notes
        if _pruned_any(coupling, plan, note.groups)
    )
    reference = MaskedOriginal(original, coupling, plan, pruned)
    rows = None
    if inputs is not None:
        pairs = zip(original.inputs, inputs, strict=True)
        rows = [analysis_rows(value, tensor) for value, tensor in pairs]
    for weights, given in _material(original, rows, seed):
        small = slice_weights(coupling, reference.kept, weights)
        small.update({name: pruned.weights[name] for name in pruned.params if name not in small})
        proof = _prove(reference, pruned, weights, small, given, EXACT)
        if proof.not_finite is None:
            break
    else:
        raise VerificationError(_not_finite(original, proof))
    if proof.wrong is not None:
        raise VerificationError(
            "the pruned network is not the original with channels removed: it differs by "
            f"{proof.error:.3g} "
            f"at {proof.wrong}; nothing is delivered"
        )
    _check_delivered(original, coupling, reference.kept, pruned)
    single = None
    if rows is not None:
        real = _prove(reference, pruned, original.weights, pruned.weights, rows, math.inf)
        if real.not_finite is not None:
            raise VerificationError(_not_finite(original, real))
        single = real.error
        if not single <= SINGLE * max(real.scale, 1.0):
            raise VerificationError(
                "the pruned network differs from the original with channels removed by "
                f"{single:.3g} on real input "
                f"(outputs up to {real.scale:.3g}), beyond float32 rounding; nothing is delivered"
            )
    return Verification(proof.error, proof.scale, True, notes, single)


def _material(
    original: Graph, rows: Sequence[Tensor] | None, seed: int
) -> Iterator[tuple[dict[str, Tensor], Sequence[Tensor]]]:
    """Yield weights and inputs in float64 to prove a network with, the sharpest first.

    The others are for networks that compute no finite numbers of the ones before: roots of inputs
    that are never negative, masks that may not be empty.
    """
    weights, inputs = perturbed(original, seed), random_inputs(original, seed)
    above = [tensor.abs() if tensor.is_floating_point() else tensor for tensor in inputs]
    filled = [
        [x if x.is_floating_point() else torch.full_like(x, number) for x in above]
        for number in (0, 1)
    ]
    real = [] if rows is None else [[_to_double(tensor.detach().cpu()) for tensor in rows]]
    plain = {name: _to_double(tensor.detach().cpu()) for name, tensor in original.weights.items()}
    for held in (weights, plain):
        yield from ((held, given) for given in (inputs, above, *filled, *real))


def _not_finite(original: Graph, proof: _Proof) -> str:
    return (
        f"{original.name} computes NaN, or infinity of finite numbers, at {proof.not_finite}: that "
        "proves nothing; nothing is delivered"
    )


def _check_delivered(original: Graph, coupling: Coupling, kept: np.ndarray, pruned: Graph) -> None:
    """Raise `VerificationError` unless the delivered weights are the same slices of the real ones:
    the proof slices perturbed weights for itself."""
    for name, wanted in slice_weights(coupling, kept, original.weights).items():
        given = pruned.weights.get(name)
        declared = pruned.params[name].type.shape() if name in pruned.params else None
        right = (
            given is not None
            and given.shape == wanted.shape
            and torch.equal(given.to(wanted.device), wanted)
        )
        if not right or declared != tuple(wanted.shape):
            users = pruned.params[name].users if name in pruned.params else ()
            where = f" of {users[0]}" if users else ""
            raise VerificationError(
                f"the weight {name}{where} is not the original's with channels removed; nothing is "
                "delivered"
            )


def _pruned_any(coupling: Coupling, plan: Plan, names: tuple[str, ...]) -> bool:
    return any(name in plan and len(plan[name]) < coupling.group(name).width for name in names)


def perturbed(graph: Graph, seed: int) -> dict[str, Tensor]:
    """Return a graph's weights as `varied` makes them.

    Raises `VerificationError` where a parameter is not finite.
    """
    for name, tensor in graph.weights.items():
        # A sum is finite only if all terms are, and far faster to take than a test of each.
        tested = tensor.is_floating_point() and graph.params[name].kind == "param"
        if tested and not (tensor.detach().sum().isfinite() or tensor.isfinite().all()):
            raise VerificationError(
                f"the parameter {name} holds NaN or infinity; nothing can be proved"
            )
    return varied(graph.weights, seed)


def varied(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return float64 weights, on the CPU, in which no two channels of any axis are alike: scaled
    along each axis, and vectors shifted. They stay near what they were, so that signals neither
    vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float64, copy=True)
            for axis, size in enumerate(tensor.shape):
                tensor.mul_(
                    (0.75 + 0.5 * noise(size)).reshape(
                        [size if a == axis else 1 for a in range(tensor.dim())]
                    )
                )
            if tensor.dim() <= 1 and not name.endswith("running_var"):
                tensor = tensor + 0.1 * (noise(*tensor.shape) - 0.5)
            elif not tensor.any():
                tensor = tensor + 0.02 * (noise(*tensor.shape) - 0.5)
        result[name] = tensor
    return result


def random_inputs(graph: Graph, seed: int) -> list[Tensor]:
    """Return normal numbers in float64 for floating inputs, zeros and ones for others, at the batch
    size of the analysis."""
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = []
    for value in graph.inputs:
        shape, dtype = value.type.shape(BATCH), DTYPES[value.type.dtype]
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return inputs


def analysis_rows(value: Value, tensor: Tensor) -> Tensor:
    """Return the first rows of an input, as many as the analysis has; a single row is repeated."""
    if not value.type.dims or isinstance(value.type.dims[0], int):
        return tensor
    rows = value.type.shape(BATCH)[0]
    return torch.cat([tensor] * -(-rows // max(1, tensor.shape[0])))[:rows]


@dataclass(frozen=True)
class _Proof:
    """Largest error and magnitude of the outputs; ``wrong`` is the first op with an error beyond
    rounding, ``not_finite`` the first one of the original that makes no number."""

    error: float
    scale: float
    wrong: str | None
    not_finite: str | None = None


@torch.random.fork_rng(devices=[])
@torch.no_grad()
def _prove(
    reference: MaskedOriginal,
    pruned: Graph,
    weights: Mapping[str, Tensor],
    small: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    tolerance: float,
) -> _Proof:
    """Run the masked original and the pruned network side by side and compare the kept elements of
    every value."""
    outputs = set(reference.coupling.graph.output_values)
    infinite = {
        value
        for name, value in reference.coupling.graph.params.items()
        if holds_infinity(weights[name])
    }
    worst = scale = 0.0
    double = _is_double(inputs, small)
    drawn: dict[Op, Tensor] = {}

    def run(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        return drawn.pop(op) if op in drawn else evaluate(op, operands, double)

    left, right = reference.steps(weights, *inputs), Interpreter(pruned, run).steps(small, *inputs)
    for op, results in left:
        if has_trait(op, Trait.RANDOM):
            # Drawn by itself the small network would get other numbers, and differ for that alone.
            twin = reference.twin[op]
            drawn[twin] = reference.keep(op.result, results[0]).reshape(
                twin.result.type.shape(BATCH)
            )
        # In step, so that no more than the live values of both networks are held, and the first
        # difference is the one that is named.
        try:
            twin, mine = next(right)
        except (RuntimeError, IndexError, ValueError) as failure:
            return _Proof(
                math.inf,
                scale,
                f"{op}, which fails in the pruned network ({str(failure).splitlines()[0]})",
            )
        for value, small_value, full, tensor in zip(
            op.results, twin.results, results, mine, strict=True
        ):
            if not value.users and value not in outputs:
                # nobody reads it (torch 2.11 records another shape for the states of an LSTM than
                # it gives)
                continue
            if tuple(tensor.shape) != small_value.type.shape(BATCH):
                return _Proof(
                    math.inf, scale, f"{op}, whose result has another shape than its type says"
                )
            if has_trait(op, Trait.UNWRITTEN):
                continue
            kept = reference.keep(value, full)
            error, size, finite = examined(kept, tensor)
            if not finite and not all_finite(kept):
                infinite.add(value)
                if kept.isnan().any() or not may_hold_infinity(op, infinite):
                    return _Proof(error, size, None, str(op))
            if not error <= tolerance * size + TINY:
                return _Proof(error, size, str(op))
            if value in outputs:
                worst, scale = max(worst, error), max(scale, size)
    return _Proof(worst, scale, None)
