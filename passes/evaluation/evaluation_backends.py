"""Batch-norm statistics and scores on the fused kernels where a device has them; elsewhere as
PyTorch computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.fresh_statistics import (
    Statistics,
    statistic_norms,
    statistics_together,
)
from pruneopt.passes.evaluation.merged import merge
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.backends import Backend, ReferenceKernels, TritonKernels
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.lowered_network import LoweredNetworkCache, recorder
from pruneopt.passes.lowering.run_statistics import BatchStatistics

__all__ = ["EvaluationBackend", "Fused", "PyTorch", "choose", "weight_bytes"]

HOST_MEMORY = 1 << 30
"""Bytes for the activations of one pass where the device does not tell what is free."""
Weights = Mapping[str, Tensor]
Into = Sequence[Statistics] | None


class EvaluationBackend(Protocol):
    """How candidates are run; as a string, what the user should know of it."""

    def statistics(
        self,
        graphs: Sequence[Graph],
        weights: Sequence[Weights],
        batches: Iterable[Tensor],
        into: Into = None,
    ) -> list[dict[str, Tensor]]:
        """Return the running statistics of each after these batches, which join those ``into`` has
        (`statistics_together`)."""
        ...

    def networks(
        self, folded: Sequence[Graph], weights: Sequence[Weights]
    ) -> Callable[[Tensor], Sequence[Any]]:
        """Return networks in evaluation mode, from graphs without batch norms: the outputs of each
        for the same inputs.

        What was given before is not to be called any more.
        """
        ...


@dataclass(frozen=True)
class PyTorch:
    """By PyTorch's own operations.

    Attributes:
        averaging, whole: how statistics are taken (`EvaluationSettings`).
        precision: what convolutions and products are computed in; None leaves it as the weights
            have it.
        fallback_reason: why there are no kernels where one might expect them; empty where nothing
            is to be said.
    """

    averaging: Averaging
    whole: bool = False
    precision: torch.dtype | None = None
    fallback_reason: str = ""

    def __str__(self) -> str:
        found = [f"no fused kernels: {self.fallback_reason}"] if self.fallback_reason else []
        return ", ".join(
            found if self.precision is None else [*found, f"in {_name(self.precision)}"]
        )

    def statistics(
        self,
        graphs: Sequence[Graph],
        weights: Sequence[Weights],
        batches: Iterable[Tensor],
        into: Into = None,
    ) -> list[dict[str, Tensor]]:
        parts = list(batches)
        with self._autocast(parts[0].device if parts else torch.device("cpu")):
            return statistics_together(
                graphs, weights, parts, self.averaging, whole=self.whole, into=into
            )

    def networks(
        self, folded: Sequence[Graph], weights: Sequence[Weights]
    ) -> Callable[[Tensor], Sequence[Any]]:
        merged = merge(folded, weights)
        interpreter = Interpreter(merged.graph)

        def run(inputs: Tensor) -> Sequence[Any]:
            with self._autocast(inputs.device):
                outputs: Sequence[Any] = interpreter.run(merged.weights, inputs)
            return outputs if self.precision is None else tree_map_only(Tensor, _widened, outputs)

        return run

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return (
            nullcontext() if self.precision is None else torch.autocast(device.type, self.precision)
        )


class Fused:
    """By the fused kernels: all candidates and batches in one launch for every layer.

    Args:
        graph: the network that candidates are cut from.
        averaging: of statistics over batches, which are taken one by one.
        backend: the kernels.
        together: candidates that come at once, at most.
        device: where they run.

    Raises:
        UserError: the kernels cannot measure all of its batch norms.
    """

    def __init__(
        self,
        graph: Graph,
        averaging: Averaging,
        backend: Backend,
        together: int,
        device: torch.device,
    ) -> None:
        if len(graph.inputs) != 1 or graph.inputs[0].type.rank != 4:
            raise UserError("they take one batch of images")
        if len(lower_statistics(graph).norms) < len(statistic_norms(graph)):
            raise UserError("they measure batch norms over images alone")
        self.averaging, self.backend = averaging, backend
        memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HOST_MEMORY
        folded = fold_batch_norms(graph).graph
        self._kept = LoweredNetworkCache(graph, folded, together, backend, memory, recorder(device))

    def __str__(self) -> str:
        return f"fused kernels ({self.backend.name}) in {_name(self.backend.dtype)}"

    def statistics(
        self,
        graphs: Sequence[Graph],
        weights: Sequence[Weights],
        batches: Iterable[Tensor],
        into: Into = None,
    ) -> list[dict[str, Tensor]]:
        into = [Statistics() for _ in graphs] if into is None else into
        for item, found in zip(
            into, self._kept.statistics(graphs, weights, list(batches)), strict=True
        ):
            _add(item, found)
        own = zip(into, graphs, weights, strict=True)
        return [item.running(graph, tensors, self.averaging) for item, graph, tensors in own]

    def networks(
        self, folded: Sequence[Graph], weights: Sequence[Weights]
    ) -> Callable[[Tensor], Sequence[Any]]:
        return self._kept.networks(folded, weights)


def choose(graph: Graph, settings: EvaluationSettings) -> EvaluationBackend:
    """Return how candidates of a network are run with these settings.

    Raises:
        UserError: settings that exclude each other, or ``kernels=reference`` of a network that
            kernels cannot take.
    """
    precision = torch.bfloat16 if settings.precision == "bf16" else None
    device = torch.device(settings.device)
    plain = PyTorch(settings.averaging, settings.whole, precision)
    if settings.kernels == "off" or (settings.kernels == "auto" and device.type != "cuda"):
        return plain
    try:
        return Fused(
            graph, settings.averaging, _backend(settings, precision), _most(graph, settings), device
        )
    except UserError as reason:
        if settings.kernels == "reference":
            raise UserError(
                f"kernels=reference is not for this: {reason}; use kernels=off"
            ) from reason
        return replace(plain, fallback_reason=str(reason))


def _backend(settings: EvaluationSettings, precision: torch.dtype | None) -> Backend:
    """Return the kernels for settings; `UserError` where they cannot do what is asked."""
    if settings.averaging.kind == "population" or settings.whole:
        what = "whole" if settings.whole else f"statistics={settings.averaging.kind}"
        raise UserError(f"they do not take {what}")
    if settings.kernels != "reference":
        return TritonKernels(torch.device(settings.device), precision or torch.float32)
    if precision is not None:
        raise UserError(f"they compute in float32, not precision={settings.precision}")
    return ReferenceKernels()


def weight_bytes(graph: Graph) -> int:
    """Return what a network's weights take."""
    return sum(tensor.nbytes for tensor in graph.weights.values())


def _most(graph: Graph, settings: EvaluationSettings) -> int:
    """Return how many candidates come at once, at most."""
    size = weight_bytes(graph)
    return max(settings.batch_size_at(0, size), settings.batch_size_at(settings.keep, size))


def _widened(tensor: Tensor) -> Tensor:
    """Return a tensor in single precision, which metrics expect."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _add(into: Statistics, batches: Sequence[Sequence[BatchStatistics]]) -> None:
    """Add the statistics that the kernels found for one candidate, with unbiased variances."""
    for found in batches:
        for item in found:
            if item.count < 2:
                raise UserError(
                    "batch-norm statistics cannot be taken of a single value per channel, at "
                    f"{item.name}: use larger "
                    "batches"
                )
            into.add(
                item.name, item.mean, item.variance * (item.count / (item.count - 1)), item.count
            )
        into.batches += 1
