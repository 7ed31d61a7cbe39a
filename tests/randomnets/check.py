"""Every network must be captured, coupled, cut at random, proved, and equal however it
is run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.errors import VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.channels.annotate import annotate, write_plan
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from randomnets.base import Dice
from randomnets.network import Network
from randomnets.oracles import smaller, zeroed
from randomnets.plans import KINDS, make_plan

EXACT = 1e-7
"""Relative to the largest element: everything runs in float64."""
COUNTS: Counter[str] = Counter()
"""How often each check was made, so that a run shows that none of them is idle."""


class Failure(AssertionError):
    """WRONG: a result differs and nothing noticed; REJECTED: a wrong slice that the proof caught;
    CRASH: anything."""

    def __init__(self, kind: str, where: str, what: str) -> None:
        super().__init__(f"{kind} in {where}: {what}")
        self.kind, self.where, self.what = kind, where, what


@dataclass(frozen=True)
class Ways:
    """How attention and layers with groups shrink."""

    heads: str
    groups: str

    def couple(self, graph: Graph) -> Coupling:
        return couple(graph, heads=self.heads, groups=self.groups)

    def __str__(self) -> str:
        return f"heads by {self.heads}, groups by {self.groups}"


@contextmanager
def stage(where: str) -> Iterator[None]:
    """Say where an error arose."""
    try:
        yield
    except Failure:
        raise
    except VerificationError as error:
        raise Failure("REJECTED", where, str(error)) from error
    except Exception as error:
        text = str(error).strip().splitlines()
        raise Failure(
            "CRASH", where, f"{type(error).__name__}: {text[0] if text else ''}"
        ) from error


def check(model: Network, dice: Dice) -> None:
    """Raises `Failure`. Weights and plans come from the dice, too."""
    seed = dice.whole(0, 99)
    awaken(model, seed)
    inputs = model.examples(2, seed)
    graph = captured(model, inputs, dynamic=dice.whole(0, 31) < 31)
    ways = Ways(dice.pick(["width", "width", "count"]), dice.pick(["width", "width", "count"]))
    with stage(f"couple, {ways}"):
        coupling = ways.couple(graph)
    count(coupling)
    check_partition(coupling, ways)
    check_both_modes(model, graph, inputs)
    if dice.whole(0, 31) == 31:  # rare, for it is slow; hypothesis likes zeros
        check_export(model, coupling, ways, inputs)
    kinds = ["least", "random", dice.pick(KINDS)] if coupling.free else ["least"]
    for kind in kinds:
        plan = make_plan(coupling, kind, seed)
        check_plan(model, graph, coupling, plan, inputs, ways, kind)
    check_text(coupling, make_plan(coupling, "random", seed))
    if dice.whole(0, 5) == 5:
        check_twice(graph, coupling, seed, inputs)


def awaken(model: Network, seed: int) -> None:
    """Weights and statistics of their own for every channel, in float64. Frozen networks train with
    still norms."""
    torch.manual_seed(seed)
    model.double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(0.5 + torch.rand_like(tensor)).add_(0.1 * torch.rand_like(tensor))
    model.train(model.plan.frozen)
    for module in model.modules() if model.plan.frozen else ():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def captured(model: Network, inputs: Sequence[Tensor], dynamic: bool = True) -> Graph:
    """The graph, which must give what the module gives, and leave the module as it was."""
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with stage("capture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = capture(model, inputs, dynamic_batch=dynamic)
    COUNTS["networks of any batch"] += graph.dynamic_batch
    COUNTS["networks whose batch could not be left open"] += dynamic and not graph.dynamic_batch
    assert modes == [module.training for module in model.modules()], "capture changed the mode"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), (
        "capture changed it"
    )
    return graph


def run(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a module returns, in the order of its structure."""
    with torch.no_grad():
        return leaves(model(*(x.clone() for x in inputs)))


def leaves(result: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def compare(mine: Sequence[Tensor], theirs: Sequence[Tensor], where: str) -> None:
    """Equal to float64 rounding."""
    COUNTS[where] += 1
    if [t.shape for t in mine] != [t.shape for t in theirs]:
        raise Failure(
            "WRONG",
            where,
            f"shapes {[tuple(t.shape) for t in mine]}, {[tuple(t.shape) for t in theirs]}",
        )
    for a, b in zip(mine, theirs, strict=True):
        same = (a == b) | (a.isnan() & b.isnan())
        error = float(torch.where(same, 0, (a - b).abs()).max()) if a.numel() else 0.0
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if not error <= EXACT * scale + 1e-10:
            raise Failure("WRONG", where, f"differs by {error:.3g}, magnitude {scale:.3g}")


def count(coupling: Coupling) -> None:
    COUNTS["networks with free groups"] += bool(coupling.free)
    COUNTS["free groups"] += len(coupling.free)
    COUNTS["frozen groups"] += len(coupling.groups) - len(coupling.free)
    for unknown in coupling.unknown:
        COUNTS[f"no rule for {unknown.op.base} ({unknown.why})"] += 1


def check_partition(coupling: Coupling, ways: Ways) -> None:
    """Every unit is in one group, every rank in one block; and coupling looks at no weight."""
    units = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(group.units for group in coupling.groups)]
    )
    assert sorted(units.tolist()) == list(range(len(coupling.unit_group)))
    for group in coupling.groups:
        assert sorted(np.concatenate(group.blocks).tolist()) == list(range(group.width))
        assert len({len(block) for block in group.blocks}) == 1
    bare = coupling.graph.copy()
    bare.weights = {}
    other = ways.couple(bare)
    assert [(g.name, g.width, g.frozen) for g in other.groups] == [
        (g.name, g.width, g.frozen) for g in coupling.groups
    ]


def check_both_modes(model: Network, graph: Graph, inputs: Sequence[Tensor]) -> None:
    """The generated module gives what the drawn one gives, in evaluation and in training,
    statistics included."""
    with stage("generate"):
        twin = build_module(graph, graph.weights)
    training = [module.training for module in model.modules()]
    model.eval()
    with stage("evaluation mode"):
        compare(run(twin, inputs), run(model, inputs), "evaluation mode")
    for module, was in zip(model.modules(), training, strict=True):
        module.train(was) if not was else None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _train(model)
    twin.train()
    left_out = any("left out" in note for note in graph.notes)
    if not left_out and not any(
        "spectral" in s.made.text or "orthogonal" in s.made.text for s in model.plan.steps
    ):
        with stage("training mode"):
            torch.manual_seed(1)
            mine = run(twin, inputs)
            torch.manual_seed(1)
            compare(mine, run(model, inputs), "training mode")
            kept = twin.state_dict()
            names = [
                name for name in graph.params if name.rpartition(".")[2].startswith("running_")
            ]
            compare(
                [kept[n] for n in names],
                [model.state_dict()[n] for n in names],
                "running statistics",
            )
    model.load_state_dict(before)
    model.eval()


def check_export(model: Network, coupling: Coupling, ways: Ways, inputs: Sequence[Tensor]) -> None:
    """The graph of torch.export, which is taken for a part of a network, is the same as the
    recorded one."""
    with stage("export"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = capture(model, inputs, forward=lambda m, *x: m(*x))
        other = ways.couple(graph)
        with torch.no_grad():
            compare(
                leaves(Interpreter(graph).run(graph.weights, *inputs)), run(model, inputs), "export"
            )
        mine, theirs = (
            [(g.name, g.width, len(g.blocks), g.frozen is None) for g in c.groups]
            for c in (coupling, other)
        )
        if mine != theirs:
            raise Failure("WRONG", "export", f"groups {mine} recorded, {theirs} exported")


def _train(model: Network) -> None:
    model.train()
    for module in model.modules() if model.plan.frozen else ():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def check_plan(
    model: Network,
    graph: Graph,
    coupling: Coupling,
    plan: Plan,
    inputs: Sequence[Tensor],
    ways: Ways,
    kind: str,
) -> None:
    """Sliced, proved, run in every way, and equal to the drawn module cut by hand."""
    kind = f"{kind}, {ways}"
    with stage(f"slice, plan {kind}"):
        pruned = slice_graph(graph, coupling, plan)
    with stage(f"verify, plan {kind}"):
        verify_pruned(graph, coupling, plan, pruned, inputs)
    with stage(f"generate, plan {kind}"):
        module = build_module(pruned, pruned.weights)
        results = run(module, inputs)
    with stage("interpreter"), torch.no_grad():
        compare(leaves(Interpreter(pruned).run(pruned.weights, *inputs)), results, "interpreter")
        again = parse_graph(print_graph(pruned))
        compare(leaves(Interpreter(again).run(pruned.weights, *inputs)), results, "text round trip")
    for batch in (1, 3) if graph.dynamic_batch else ():
        with stage(f"batch of {batch}"):
            rows = model.examples(batch, 7)
            shapes = [t.shape for t in run(model, rows)]
            assert [t.shape for t in run(module, rows)] == shapes
    masked = zeroed(model, coupling, plan)
    if masked is not None:
        with stage("zeroed original"):
            compare(results, run(masked, inputs), "zeroed original")
    fewer_heads = ways.heads == "count" and any(step.made.product for step in model.plan.steps)
    slim = (
        None if fewer_heads else smaller(model, pruned.weights, whole_groups=ways.groups == "count")
    )
    if slim is not None:
        with stage("original Python at smaller widths"):
            compare(results, run(slim, inputs), "original Python at smaller widths")


def check_text(coupling: Coupling, plan: dict[str, np.ndarray]) -> None:
    """The annotated text reads back as it was written, before and after a plan is decided."""
    with stage("annotate"):
        graph = annotate(coupling)
        for _ in range(2):
            text = print_graph(graph)
            if print_graph(parse_graph(text)) != text:
                raise Failure("WRONG", "annotate", "the text does not read back")
            write_plan(graph, plan)


def check_twice(graph: Graph, coupling: Coupling, seed: int, inputs: Sequence[Tensor]) -> None:
    """Capture and prune again what was pruned and generated."""
    with stage("capture again"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned = slice_graph(graph, coupling, make_plan(coupling, "random", seed))
        again = capture(
            build_module(pruned, pruned.weights), inputs, dynamic_batch=graph.dynamic_batch
        )
        second = couple(again)
    plan = make_plan(second, "random", seed + 1)
    with stage("prune again"):
        verify_pruned(again, second, plan, slice_graph(again, second, plan))
    COUNTS["pruned twice"] += 1
