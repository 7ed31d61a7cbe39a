"""One network through every stage of pruneopt, with the processor seconds of each; runs in a
process of its own.

Random weights suffice: nothing is trained. Every stage checks its own result, so that a network
which goes wrong is told from one that merely does not compile: the captured graph against the
module, the cut network by the float64 proof, the generated module against the graph, and
onnxruntime against the generated module.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_networks import located
from coverage_process import Tell
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt import (
    Graph,
    LoadedModel,
    Result,
    UserError,
    VerificationError,
    build_module,
    capture,
    export_onnx,
    load_model,
    run_onnx,
)
from pruneopt.extend import (
    CostModel,
    Coupling,
    Interpreter,
    Verification,
    couple,
    keep_best,
    parse_budget,
    score_units,
    select,
    slice_graph,
    verify_graph,
    verify_pruned,
)
from pruneopt.ir.compare import same_outputs
from pruneopt.passes.analysis.channels.annotate import annotate

__all__ = ["STAGES", "enliven", "measure"]

STAGES = ("load", "capture", "couple", "prune", "slice", "verify", "run", "onnx", "apply")
SHARE = 0.5
"""Of the FLOPs: what is asked for."""
MARGIN = 0.05
"""Added to the smallest reachable share where that is above `SHARE`."""
RATIO = 0.3
"""Of the channels of every group: for the comparison with tools that know ratios only."""
SAME = 1e-4
"""Largest difference, relative to the largest output, between two float32 runs of one network."""
ONNX = 1e-3


@dataclass
class Run:
    """What the stages hand to one another, and the row that they fill."""

    spec: str
    row: dict[str, Any]
    loaded: LoadedModel = field(init=False)
    graph: Graph = field(init=False)
    coupling: Coupling = field(init=False)
    cost: CostModel = field(init=False)
    plan: dict[str, Any] = field(init=False)
    pruned: Graph = field(init=False)
    proof: Verification = field(init=False)
    module: nn.Module = field(init=False)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.loaded.example_inputs


def measure(spec: str, stages: Sequence[str], tell: Tell) -> dict[str, Any]:
    """Return the row of one network, with the results of the given stages, which are in the order
    of `STAGES`.

    Raises whatever a stage raises: the caller makes a row of it.
    """
    torch.manual_seed(0)
    run = Run(spec, {"seconds": {}})
    for stage in stages:
        tell(stage, run.row)
        start = time.process_time()
        _STAGES[stage](run)
        run.row["seconds"][stage] = round(time.process_time() - start, 2)
    return run.row


def _load(run: Run) -> None:
    run.loaded = load_model(located(run.spec))
    module = run.loaded.module
    assert isinstance(module, nn.Module)
    enliven(module, run.inputs)
    run.row["parameters"] = sum(p.numel() for p in module.parameters())


def _capture(run: Run) -> None:
    module = run.loaded.module
    assert isinstance(module, nn.Module)
    run.graph = capture(module, run.inputs)
    with torch.no_grad():
        wanted = module.eval()(*run.inputs)
        got = Interpreter(run.graph).run(run.graph.weights, *run.inputs)
    graph = run.graph
    run.row |= {
        "ops": len(list(graph.ops)),
        "dynamic_batch": graph.dynamic_batch,
        "notes": list(graph.notes),
    }
    if graph.exported_because is not None:
        run.row["exported"] = graph.exported_because[:200]
    run.row["capture_error"] = _compare(got, wanted, SAME)


def _couple(run: Run) -> None:
    run.coupling = couple(run.graph)
    run.graph = annotate(run.coupling)
    verify_graph(run.graph)
    groups, free = run.coupling.groups, run.coupling.free
    run.row |= {
        "groups": len(free),
        "prunable_channels": sum(g.width for g in free) / max(1, sum(g.width for g in groups)),
        "unknown_ops": sorted({f"{item.op.target}: {item.why}" for item in run.coupling.unknown}),
        "frozen": sorted({group.frozen for group in groups if group.frozen})[:8],
        "by_construction": len(run.coupling.notes),
        "output_layers": _output_layers(run.graph),
    }


def _output_layers(graph: Graph) -> list[str]:
    """Return the modules whose channels the network returns: the first ones with a weight, going
    back from the outputs."""
    found, seen = set(), set()
    waiting = [value.producer for value in graph.output_values]
    while waiting:
        op = waiting.pop()
        if op is None or op in seen:
            continue
        seen.add(op)
        if any(value.is_weight and len(value.type.dims) > 1 for value in op.inputs):
            found.add(op.loc.module)
        else:
            waiting += [value.producer for value in op.inputs]
    return sorted(found)


def _prune(run: Run) -> None:
    """Choose by L1 over all groups at half the FLOPs, or a bit above the smallest reachable share;
    the plan at one ratio too."""
    run.cost = cost = CostModel(run.coupling.graph, run.coupling)
    full, least = (float(cost.measure("flops", widths)) for widths in (cost.full, cost.minimum))
    run.row |= {"flops": full, "smallest_flops": least / full if full else 1.0}
    if not cost.groups:
        raise UserError("no channel of this network can be removed")
    target = SHARE if least <= SHARE * full else min(1.0, least / full + MARGIN)
    scores = score_units(run.coupling, run.graph.weights, "l1", normalise=True)
    run.plan = select(scores, run.coupling, cost, [parse_budget(f"{100 * target:.2f}%FLOPs")])
    # The peer rounds what stays down.
    steps = np.maximum(1, np.floor((1 - RATIO) * cost.full / cost.step + 1e-9).astype(np.int64))
    alike = keep_best(steps * cost.step, scores, run.coupling, cost)
    run.row |= {"target": round(target, 4)}
    for key, plan in (("achieved", run.plan), ("at_ratio", alike)):
        for unit in ("flops", "params"):
            share = cost.measure(unit, cost.widths(plan)) / cost.measure(unit, cost.full)
            run.row[f"{key}_{unit}"] = round(float(share), 4)


def _slice(run: Run) -> None:
    run.pruned = slice_graph(run.graph, run.coupling, run.plan)
    verify_graph(run.pruned)


def _verify(run: Run) -> None:
    run.proof = verify_pruned(run.graph, run.coupling, run.plan, run.pruned)
    run.row |= {"proof_error": run.proof.max_abs_error, "proof_scale": run.proof.scale}


def _run(run: Run) -> None:
    """Compare the generated module with the graph, at batch 3 where the batch is free."""
    run.module = build_module(run.pruned, run.pruned.weights).eval()
    inputs = _batch_of_three(run)
    with torch.no_grad():
        wanted = Interpreter(run.pruned).run(run.pruned.weights, *inputs)
        run.row["module_error"] = _compare(run.module(*inputs), wanted, SAME)


def _onnx(run: Run) -> None:
    inputs = _batch_of_three(run)
    with torch.no_grad():
        wanted = run.module(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(run.module, run.inputs, path, dynamic_batch=run.pruned.dynamic_batch)
        got = run_onnx(path, inputs)
    run.row["onnx_error"] = _compare(got, pytree.tree_leaves(wanted), ONNX)


def _apply(run: Run) -> None:
    """Slim the user's own module in place. A class whose code fixes a size is refused with its
    line: no failure."""
    result = Result(run.pruned, run.plan, run.coupling, run.proof, (), {}, {})
    own = run.loaded.module
    assert isinstance(own, nn.Module)
    try:
        result.apply_(own, inputs=run.inputs)
    except (UserError, VerificationError) as refusal:
        run.row |= {"applied": False, "refused": " ".join(str(refusal).split())[:400]}
        return
    inputs = _batch_of_three(run)
    with torch.no_grad():
        _compare(own.eval()(*inputs), run.module(*inputs), SAME)
    run.row["applied"] = True


_STAGES: dict[str, Callable[[Run], None]] = {
    "load": _load,
    "capture": _capture,
    "couple": _couple,
    "prune": _prune,
    "slice": _slice,
    "verify": _verify,
    "run": _run,
    "onnx": _onnx,
    "apply": _apply,
}


def enliven(module: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Make random weights carry a signal to the outputs, so that comparing outputs means something.

    Batch norm takes the statistics of random inputs, as it would have after training; weights that
    start at zero (the head of a ViT, the last norm of a residual branch) become small random
    numbers.
    """
    norms = [item for item in module.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.numel() > 1 and not weight.any():
                weight.normal_(std=0.02)
        for norm in norms:
            norm.momentum = 1.0
            norm.train(norm.track_running_stats)
        if norms:
            module(*(_noise(x) for x in examples))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def _noise(example: Tensor) -> Tensor:
    """Return two random samples like an example; whole numbers as they are."""
    shape = (2, *example.shape[1:]) if example.dim() and example.shape[0] == 1 else example.shape
    return torch.randn(shape) if example.is_floating_point() else example.expand(shape).clone()


def _batch_of_three(run: Run) -> tuple[Tensor, ...]:
    """Return the example repeated to batch 3; as it is where the batch is fixed."""
    if not run.graph.dynamic_batch:
        return run.inputs
    follow = [bool(v.type.dims) and not isinstance(v.type.dims[0], int) for v in run.graph.inputs]
    pairs = zip(run.inputs, follow, strict=True)
    return tuple(torch.cat([x] * 3)[: 3 * x.shape[0]] if free else x for x, free in pairs)


def _compare(got: Any, wanted: Any, tolerance: float) -> float:
    """Return the largest difference relative to the largest output; raises where it is beyond the
    tolerance."""
    tensors = [leaf for leaf in pytree.tree_leaves(wanted) if isinstance(leaf, Tensor)]
    scale = max(
        [1e-3, *(float(t.abs().max()) for t in tensors if t.numel() and t.is_floating_point())]
    )
    return (
        same_outputs(
            [leaf for leaf in pytree.tree_leaves(got) if leaf is not None],
            tensors,
            tolerance * scale,
            0.0,
        )
        / scale
    )
