"""Fresh batch-norm statistics of a graph, under any of the named semantics of
`kernels.bn_statistics`.

In the published semantics every batch is normalised by its own statistics. Batches then do not
depend on each other: each gives a mean and a variance per channel, and the running statistics are a
weighted sum of these. ``population`` goes layer by layer over all batches instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.kernels.bn_statistics import Averaging, combine, pool
from pruneopt.passes.analysis.ops.batch_norm import RunningNorm, running_norm
from pruneopt.passes.evaluation.merged import Merged, merge

__all__ = ["Statistics", "fresh_statistics", "statistic_norms", "statistics_together"]

Weights = Mapping[str, Tensor]


def statistic_norms(graph: Graph) -> dict[Op, RunningNorm]:
    """Return the batch norms whose running statistics training would change, in graph order.

    Raises:
        UserError: one that gives the statistics of its batch away.
    """
    found = {op: norm for op in graph.ops if (norm := running_norm(op)) is not None and norm.learns}
    for op in found:
        if len(op.results) > 1:
            raise UserError(
                f"{op} returns its statistics, which cannot be recomputed: use nn.BatchNorm in the "
                "model"
            )
    return found


@dataclass
class Statistics:
    """The sums over the batches so far: more may follow.

    Attributes:
        means, variances: per name of a running mean, the (unbiased) statistics `[C]` of every
            batch, in order.
        counts: values per channel in each.
        batches: how many batches there were.
    """

    means: dict[str, list[Tensor]] = field(default_factory=dict)
    variances: dict[str, list[Tensor]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    batches: int = 0

    def add(self, name: str, mean: Tensor, variance: Tensor, count: int) -> None:
        """Add one batch at one batch norm: mean and unbiased variance `[C]` of ``count`` values."""
        self.means.setdefault(name, []).append(mean)
        self.variances.setdefault(name, []).append(variance)
        self.counts.setdefault(name, []).append(count)

    def running(self, graph: Graph, weights: Weights, averaging: Averaging) -> dict[str, Tensor]:
        """Return the running statistics after these batches, by name, in the precision of the
        weights'."""
        found: dict[str, Tensor] = {}
        for norm in statistic_norms(graph).values():
            mean_name, variance_name = norm.mean.name, norm.variance.name
            # A batch norm that is applied twice has two ops and one entry: each application was
            # added as a batch, which is what training does to its running statistics.
            if mean_name not in self.means or mean_name in found:
                continue
            # In float64: a hundred weights that sum to 1 must not lose what float32 rounds away.
            means, variances = (
                torch.stack(part[mean_name]).double() for part in (self.means, self.variances)
            )
            counts = torch.tensor(self.counts[mean_name], dtype=torch.float64, device=means.device)
            old = weights[mean_name], weights[variance_name]
            if averaging.kind == "mean_biased":
                # Once-for-All divides by n, not n - 1, before it averages; a smaller last batch
                # counts by its size.
                share = counts / counts.sum()
                mean, variance = (
                    share @ means,
                    share @ (variances * ((counts - 1) / counts)[:, None]),
                )
            else:
                # In closed form, so that batches may come in parts.
                shares = averaging.weights(len(means), _seen(weights, mean_name))
                mean, variance = combine(
                    means, variances, shares, (old[0].double(), old[1].double())
                )
            found[mean_name], found[variance_name] = mean.to(old[0]), variance.to(old[1])
            found |= _counted(weights, mean_name, len(means), averaging.reset)
        return found


def fresh_statistics(
    graph: Graph,
    weights: Weights,
    batches: Iterable[Tensor],
    averaging: Averaging,
    *,
    whole: bool = False,
    into: Statistics | None = None,
) -> dict[str, Tensor]:
    """Return the running means and variances of every batch norm after these batches, by name; no
    weight is changed.

    Args:
        graph: the network.
        weights: its weights, on the device of the batches.
        batches: inputs `[n, ...]` of a network with one input; each has to give more than one value
            per channel.
        averaging: the semantics.
        whole: the complete network in training mode, so that dropout drops, as the papers' code has
            it.
        into: statistics of batches before, which these join (not for ``population``).

    Raises:
        UserError: one value per channel, inputs that do not fit, or ``population`` of a batch norm
            in two places.
    """
    (found,) = statistics_together(
        [graph], [weights], batches, averaging, whole=whole, into=None if into is None else [into]
    )
    return found


def statistics_together(
    graphs: Sequence[Graph],
    weights: Sequence[Weights],
    batches: Iterable[Tensor],
    averaging: Averaging,
    *,
    whole: bool = False,
    into: Sequence[Statistics] | None = None,
) -> list[dict[str, Tensor]]:
    """Return the `fresh_statistics` of several networks on the same batches; what they compute
    alike is computed once."""
    into = [Statistics() for _ in graphs] if into is None else into
    if not any(statistic_norms(graph) for graph in graphs):
        return [{} for _ in graphs]
    with torch.no_grad():
        # Each layer needs all batches before the next one starts, so they are held.
        if averaging.kind == "population":
            held = list(batches)
            return [
                _population(graph, own, held, whole)
                for graph, own in zip(graphs, weights, strict=True)
            ]
        merged = merge(graphs, weights)
        interpreter = Interpreter(merged.graph, _recorder(graphs, merged, into))
        for inputs in batches:
            with _complaints(inputs):
                interpreter.run(merged.weights, inputs, training=whole)
            for item in into:
                item.batches += 1
        own = zip(into, graphs, weights, strict=True)
        return [item.running(graph, tensors, averaging) for item, graph, tensors in own]


def _recorder(
    graphs: Sequence[Graph], merged: Merged, into: Sequence[Statistics]
) -> Callable[[Op, list[Any], Callable[[], Any]], Any]:
    """Make batch norms normalise by their batch, whatever the mode, and write its statistics down
    for each owner."""
    # Candidates that are equal up to here share one op, whose statistics belong to all of them.
    owners: dict[Op, list[tuple[RunningNorm, Statistics]]] = {}
    for graph, ops, item in zip(graphs, merged.ops, into, strict=True):
        for op, norm in statistic_norms(graph).items():
            owners.setdefault(ops[op], []).append((norm, item))

    def override(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        if op not in owners:
            return None
        inputs, scale, shift = operands[:3]
        mean, variance = torch.zeros_like(operands[3]), torch.ones_like(operands[4])
        # PyTorch gives away a batch's statistics only as running ones: with momentum 1 they are
        # those of the batch, computed once beside the output.
        out = F.batch_norm(inputs, mean, variance, scale, shift, True, 1.0, owners[op][0][0].eps)
        for norm, item in owners[op]:
            item.add(norm.mean.name, mean, variance, inputs.numel() // max(1, len(mean)))
        return out

    return override


def _population(
    graph: Graph, weights: Weights, batches: Sequence[Tensor], whole: bool
) -> dict[str, Tensor]:
    """Return the running statistics of a network that all batches pass op by op, side by side."""
    norms = statistic_norms(graph)
    interpreter = Interpreter(graph, _normaliser(norms))
    found: dict[str, Tensor] = {}
    # One frame for each batch, in step: at a batch norm the inputs of all batches lie ready.
    frames = [interpreter.frame(weights, inputs, training=whole) for inputs in batches]
    for op in graph.ops:
        norm = norms.get(op)
        if norm is not None and frames:
            if norm.mean.name in found:
                raise UserError(
                    f"population needs one place for every batch norm, and {op} is applied twice: "
                    "use mean"
                )
            pooled = _pooled([frame.env[norm.source] for frame in frames])
            for value, tensor in zip((norm.mean, norm.variance), pooled, strict=True):
                found[value.name] = tensor.to(weights[value.name])
                # The op itself, and all layers behind it, see the new statistics, as in inference.
                for frame in frames:
                    frame.env[value] = found[value.name]
            found |= _counted(weights, norm.mean.name, len(frames), reset=True)
        for frame, inputs in zip(frames, batches, strict=True):
            with _complaints(inputs):
                interpreter.step(frame, op)
    return found


def _pooled(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel `[C]` of all parts `[n, C, ...]` together,
    float64."""
    pairs = [
        torch.var_mean(part.double().movedim(1, 0).flatten(1), dim=1, unbiased=False)
        for part in parts
    ]
    counts = torch.tensor([part.numel() // part.shape[1] for part in parts], dtype=torch.float64)
    return pool(
        torch.stack([mean for _, mean in pairs]), torch.stack([var for var, _ in pairs]), counts
    )


def _normaliser(
    norms: Mapping[Op, RunningNorm],
) -> Callable[[Op, list[Any], Callable[[], Any]], Any]:
    """Make batch norms use the statistics they are given, whatever the mode."""

    def override(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        norm = norms.get(op)
        if norm is None:
            return None
        inputs, scale, shift, mean, variance = operands[:5]
        return F.batch_norm(inputs, mean, variance, scale, shift, training=False, eps=norm.eps)

    return override


def _counter(mean_name: str) -> str:
    return mean_name.removesuffix("running_mean") + "num_batches_tracked"


def _seen(weights: Weights, mean_name: str) -> int:
    """Return how many batches a batch norm counts so far."""
    count = weights.get(_counter(mean_name))
    return 0 if count is None else int(count)


def _counted(weights: Weights, mean_name: str, batches: int, reset: bool) -> dict[str, Tensor]:
    """Return the counter of a batch norm after these batches, where it has one."""
    count = weights.get(_counter(mean_name))
    before = 0 if reset or count is None else int(count)
    return {} if count is None else {_counter(mean_name): torch.full_like(count, before + batches)}


@contextmanager
def _complaints(inputs: Tensor) -> Iterator[None]:
    """Turn PyTorch's errors into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too, but no fault of the batch's shape
        raise
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shape = list(inputs.shape)
        raise UserError(
            f"batch-norm statistics cannot be taken of a batch of shape {shape}: {reason}"
        ) from error
