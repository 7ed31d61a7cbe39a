"""The cost model against PyTorch's own counter, against sliced weights, and against simulations
written out plainly."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph, Value
from pruneopt.ir.interpreter import Interpreter
from pruneopt.models import zoo
from pruneopt.models.source import load_model
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.conventions import Convention, conventions, register_convention
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import UNITS
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph


class Mixed(nn.Module):
    """Grouped, depthwise and transposed convolutions, a concatenation, a gate, a flatten and a tied
    linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.side = nn.Conv2d(3, 5, 1)
        self.gate = nn.Linear(11, 11)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(11 * 16, 16)
        self.tied = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.depthwise(self.grouped(F.relu(self.bn(self.stem(x))))))
        y = torch.cat([self.pool(self.up(y)), self.side(x)], dim=1)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        y = F.relu(self.hidden(self.pool(y).flatten(1)))
        return self.head(self.tied(F.dropout(self.tied(y), 0.5, self.training)))


class Products(nn.Module):
    """Every way to write a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 10))
        self.b = nn.Parameter(torch.randn(10, 7))
        self.c = nn.Parameter(torch.randn(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.c, x @ self.a, self.b)
        z = torch.einsum("nk,kl->nl", y, self.b.T)
        z = torch.einsum("nl,lm,m->n", z, self.b, self.c)
        w = torch.bmm(y[:, None], y[:, :, None]) + torch.baddbmm(
            y[:, :1, None], y[:, None], y[:, :, None]
        )
        return (
            F.scaled_dot_product_attention(y[:, None], y[:, None], w * y[:, None])
            + z[:, None, None]
        )


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=48,
        num_classes=10,
    )


LOCAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixed": (Mixed, (1, 3, 8, 8)),
    "products": (Products, (3, 6)),
    "tiny_vit": (tiny_vit, (1, 3, 32, 32)),
}
FAST = ["mixed", "tiny_vit", "zoo:resnet20", "resnet18", "mobilenet_v2", "shufflenet_v2_x1_0"]
SLOW = (
    (Path(__file__).parents[4] / "benchmarks" / "networks" / "quick.txt")
    .read_text(encoding="utf-8")
    .split()
)


def coupling_of(name: str) -> Coupling:
    if name in LOCAL:
        make, shape = LOCAL[name]
        return couple(capture(make().eval(), torch.randn(shape), dynamic_batch=name != "products"))
    source = load_model(name if ":" in name else f"torchvision:{name}")
    return couple(capture(source.module, source.example_inputs))


small_coupling = cache(coupling_of)


def random_plan(coupling: Coupling, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Any units that the constraints allow: as many of every block of a group."""
    plan = {}
    for group in coupling.free:
        count = int(rng.integers(group.least, len(group.blocks[0]) + 1))
        chosen = [rng.choice(block, count, replace=False) for block in group.blocks]
        plan[group.name] = np.sort(np.concatenate(chosen))
    return plan


def random_widths(cost: CostModel, rng: np.random.Generator, count: int) -> np.ndarray:
    return (
        rng.integers(
            cost.minimum // cost.step, cost.full // cost.step + 1, size=(count, len(cost.full))
        )
        * cost.step
    )


def counted_macs(graph: Graph) -> int:
    """Return the count of PyTorch for a run at batch 1 (it counts two FLOPs for a MAC)."""
    weights = {name: tensor.to("meta") for name, tensor in graph.weights.items()}
    inputs = [torch.empty(value.type.shape(1), device="meta") for value in graph.inputs]
    with FlopCounterMode(display=False) as counter:
        Interpreter(graph).run(weights, *inputs)
    return int(counter.get_total_flops()) // 2


def check_sliced(coupling: Coupling, cost: CostModel, plan: dict[str, np.ndarray]) -> None:
    """Every unit of cost against the network that the plan leaves."""
    sliced = slice_graph(coupling.graph, coupling, plan)
    widths = cost.widths(plan)
    held = [sliced.weights[name] for name in coupling.graph.params]
    params = sum(
        sliced.weights[name].numel()
        for name, value in sliced.params.items()
        if value.kind == "param"
    )
    assert cost.measure("flops", widths) == counted_macs(sliced)
    assert cost.measure("params", widths) == params
    assert cost.measure("bytes", widths) == sum(
        tensor.numel() * tensor.element_size() for tensor in held
    )
    assert cost.measure("memory", widths) == simulated_peak(sliced)


# Against PyTorch's counter and sliced weights


@pytest.mark.parametrize("name", FAST)
def test_full_and_pruned(name: str) -> None:
    coupling = small_coupling(name)
    cost = CostModel(coupling.graph, coupling)
    assert cost.groups
    check_sliced(coupling, cost, coupling.full_plan())
    rng = np.random.default_rng(0)
    for _ in range(2):
        check_sliced(coupling, cost, random_plan(coupling, rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_full_and_pruned_large(name: str) -> None:
    coupling = coupling_of(name)
    cost = CostModel(coupling.graph, coupling)
    check_sliced(coupling, cost, coupling.full_plan())
    check_sliced(coupling, cost, random_plan(coupling, np.random.default_rng(1)))


@settings(max_examples=30)
@given(st.sampled_from(["mixed", "tiny_vit", "zoo:digits_resnet"]), st.integers(0, 2**32 - 1))
def test_any_plan(name: str, seed: int) -> None:
    coupling = small_coupling(name)
    check_sliced(
        coupling,
        CostModel(coupling.graph, coupling),
        random_plan(coupling, np.random.default_rng(seed)),
    )


def test_every_matrix_product() -> None:
    coupling = small_coupling("products")
    cost = CostModel(coupling.graph, coupling)
    assert cost.measure("flops", cost.full) == counted_macs(coupling.graph)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 2 * 3 * 5),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 6 * 5),
        ("...ij,...jk", [(7, 2, 3), (7, 3, 5)], 7 * 2 * 3 * 5),
        ("...ij,jk->...ik", [(7, 2, 3), (3, 5)], 7 * 2 * 3 * 5),
        ("...i,...i->...", [(7, 1, 3), (1, 4, 3)], 7 * 4 * 3),
        ("ijx,jk->ik", [(2, 3, 9), (3, 5)], 2 * 3 * 5),  # x is summed out before
        ("ij,j,jk->ik", [(2, 3), (3,), (3, 5)], 2 * 3 + 2 * 3 * 5),
        ("ij->ji", [(2, 3)], 0),
        ("i,j->ij", [(2,), (3,)], 6),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    class Einsum(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, *tensors)

    coupling = couple(
        capture(Einsum(), [torch.randn(shape) for shape in shapes], dynamic_batch=False)
    )
    cost = CostModel(coupling.graph, coupling)
    assert [op.base for op in coupling.graph.ops] == ["einsum"]
    assert cost.measure("flops", cost.full) == macs


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")
def test_recurrent_layers() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    coupling = couple(capture(Recurrent().eval(), torch.randn(1, 7, 5), dynamic_batch=False))
    cost = CostModel(coupling.graph, coupling)
    matrices = 2 * (16 * 5 + 16 * 4) + 2 * (16 * 8 + 16 * 4)
    assert cost.measure("flops", cost.full) == 7 * matrices


# Shape of the interface


@pytest.mark.parametrize("name", ["mixed", "tiny_vit", "zoo:resnet20"])
@pytest.mark.parametrize("convention", [item.name for item in conventions()])
def test_population_equals_one_by_one(name: str, convention: str) -> None:
    coupling = small_coupling(name)
    cost = CostModel(coupling.graph, coupling, convention)
    widths = random_widths(cost, np.random.default_rng(2), 50)
    for unit in UNITS:
        together = cost.measure(unit, widths)
        assert together.shape == (50,)
        assert together.dtype == np.int64
        assert together.tolist() == [int(cost.measure(unit, row)) for row in widths]
        assert cost.measure(unit, cost.full).shape == ()
        assert cost.measure(unit, widths[:0]).shape == (0,)


def test_long_populations_are_cut() -> None:
    coupling = small_coupling("mixed")
    cost = CostModel(coupling.graph, coupling)
    widths = random_widths(cost, np.random.default_rng(3), 10)
    many = np.tile(widths, (1000, 1))
    for unit in UNITS:
        assert (cost.measure(unit, many) == np.tile(cost.measure(unit, widths), 1000)).all()


@settings(max_examples=30)
@given(st.sampled_from(["mixed", "tiny_vit", "zoo:resnet20"]), st.integers(0, 2**32 - 1))
def test_monotone_in_every_width(name: str, seed: int) -> None:
    coupling = small_coupling(name)
    cost = CostModel(coupling.graph, coupling)
    low = random_widths(cost, np.random.default_rng(seed), 1)[0]
    higher = np.minimum(low + np.diag(cost.step), cost.full)
    for unit in UNITS:
        assert (cost.measure(unit, higher) >= cost.measure(unit, low)).all()
        assert (
            cost.measure(unit, cost.minimum)
            <= cost.measure(unit, low)
            <= cost.measure(unit, cost.full)
        )


def test_groups_and_widths() -> None:
    coupling = small_coupling("mixed")
    cost = CostModel(coupling.graph, coupling)
    assert cost.groups == tuple(group.name for group in coupling.free)
    assert (cost.full % cost.step == 0).all()
    assert cost.minimum.tolist() == [len(group.blocks) for group in coupling.free]
    assert 2 in cost.step  # the grouped convolution
    assert cost.widths({}).tolist() == cost.full.tolist()
    name = cost.groups[0]
    assert cost.widths({name: np.arange(2)}).tolist() == [2, *cost.full[1:].tolist()]


@pytest.mark.parametrize("convention", [item.name for item in conventions()])
def test_table_adds_up(convention: str) -> None:
    coupling = small_coupling("mixed")
    cost = CostModel(coupling.graph, coupling, convention)
    for widths in (cost.full, cost.minimum):
        table = cost.describe(widths)
        assert sum(row.flops for row in table) == cost.measure("flops", widths)
        assert sum(row.params for row in table) == cost.measure("params", widths)
    assert [row.op for row in cost.describe()] == [
        op for op in coupling.graph.ops if op in {r.op for r in table}
    ]


def test_shared_weights_count_once_and_work_twice() -> None:
    coupling = small_coupling("mixed")
    cost = CostModel(coupling.graph, coupling)
    tied = [row for row in cost.describe() if row.location.module == "tied"]
    assert [row.flops for row in tied] == [256, 256]
    assert [row.params for row in tied] == [272, 0]
    assert cost.measure("params", cost.full) == sum(p.numel() for p in Mixed().parameters())


def test_nothing_to_prune() -> None:
    coupling = small_coupling("products")
    frozen = freeze_named(coupling, [group.name for group in coupling.free])
    cost = CostModel(coupling.graph, frozen)
    assert cost.groups == ()
    assert cost.measure("flops", np.empty((3, 0))).tolist() == [counted_macs(coupling.graph)] * 3


def test_buffers_count_as_bytes() -> None:
    coupling = small_coupling("zoo:resnet20")
    cost = CostModel(coupling.graph, coupling)
    state = zoo.create("resnet20").state_dict().values()
    assert cost.measure("bytes", cost.full) == sum(
        tensor.numel() * tensor.element_size() for tensor in state
    )


def test_two_flops_per_mac_is_twice_the_default() -> None:
    coupling = small_coupling("mixed")
    once, twice = (CostModel(coupling.graph, coupling, name) for name in ("macs", "2x"))
    assert twice.measure("flops", twice.minimum) == 2 * once.measure("flops", once.minimum) > 0
    assert twice.measure("params", twice.full) == once.measure("params", once.full)


def test_errors() -> None:
    coupling = small_coupling("mixed")
    with pytest.raises(
        UserError, match="no FLOPs convention 'mac': known are macs, 2x, metapruning"
    ):
        CostModel(coupling.graph, coupling, "mac")
    cost = CostModel(coupling.graph, coupling)
    with pytest.raises(UserError, match="no cost unit 'seconds': known are flops"):
        cost.measure("seconds", cost.full)
    with pytest.raises(InternalError, match="do not fit"):
        cost.measure("flops", cost.full[:-1])


# Conventions


def test_conventions_differ_as_they_say() -> None:
    coupling = small_coupling("mixed")
    macs, greg, eagleeye = (
        CostModel(coupling.graph, coupling, name) for name in ("macs", "greg", "eagleeye")
    )
    full = macs.full
    assert greg.measure("flops", full) == 2 * macs.measure("flops", full)
    assert eagleeye.measure("flops", full) == macs.measure("flops", full)
    module = Mixed()
    layers = [
        m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    weights = sum(m.weight.numel() for m in layers)
    assert eagleeye.measure("params", full) == weights
    assert greg.measure("params", full) == weights + sum(
        m.bias.numel() for m in layers if m.bias is not None
    )


def test_metapruning_counts_relu_modules_and_pooling() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, bias=True)
            self.act = nn.ReLU(inplace=True)
            self.pool = nn.MaxPool2d((3, 2))
            self.fc = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.pool(self.act(self.conv(x))))
            return self.fc(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1))

    coupling = couple(capture(Net().eval(), torch.randn(1, 3, 14, 14)))
    cost = CostModel(coupling.graph, coupling, "metapruning")
    by_op = {row.op.base: row.flops for row in cost.describe()}
    conv, relu, wide, narrow = 8 * 12 * 12 * 27, 8 * 12 * 12, 6 * 8 * 4 * 6, 4 * 8 * 2 * 3
    assert by_op == {
        "conv2d": conv,
        "relu": relu,
        "max_pool2d": wide,
        "avg_pool2d": narrow,
        "linear": 45,
    }


def test_another_convention_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneopt.passes.analysis.cost.conventions._CONVENTIONS", {})
    register_convention(Convention("none", "nothing costs anything", lambda op: (), lambda op: ()))
    coupling = small_coupling("mixed")
    cost = CostModel(coupling.graph, coupling, "none")
    assert cost.measure("flops", cost.full) == cost.measure("params", cost.full) == 0
    assert cost.describe() == ()
    with pytest.raises(UserError, match="exists already"):
        register_convention(Convention("none", "again", lambda op: (), lambda op: ()))


# Memory

VIEWS = (
    "view",
    "reshape",
    "flatten",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "split",
    "chunk",
    "expand",
    "unbind",
    "contiguous",
    "dropout",
    "t",
    "split_with_sizes",
    "unflatten",
    "expand_as",
    "detach",
    "numpy_T",
    "to",
    "alias",
)
SIZES = {"f32": 4, "i64": 8, "bool": 1}


def simulated_peak(graph: Graph) -> int:
    """Liveness written out: before and during every op, whatever memory is still to be read
    counts."""
    owner: dict[Value, Value] = {value: value for value in graph.inputs}
    for op in graph.ops:
        for value in op.results:
            source = op.value(0)
            owner[value] = (
                owner.get(source, source) if op.base in VIEWS and source is not None else value
            )
    peak = 0
    for step in range(-1, len(graph.ops)):
        known = {*graph.inputs, *(value for op in graph.ops[: step + 1] for value in op.results)}
        needed = set(graph.output_values) | {
            value for op in graph.ops[max(step, 0) :] for value in op.inputs
        }
        needed |= set(graph.ops[step].results) if step >= 0 else set(graph.inputs)
        alive = {owner[value] for value in needed & known}
        peak = max(peak, sum(bytes_of(value) for value in alive if not value.is_weight))
    return peak


def bytes_of(value: Value) -> int:
    return int(np.prod(value.type.shape(1), dtype=np.int64)) * SIZES.get(value.type.dtype, 0)


def observed_peak(graph: Graph) -> int:
    """Return the bytes that a run holds at the end of every op: the distinct storages of all
    tensors still to be read."""
    last: dict[Value, int] = {}
    for number, op in enumerate(graph.ops):
        last |= dict.fromkeys((*op.inputs, *op.results), number)
    last |= dict.fromkeys(graph.output_values, len(graph.ops))
    inputs = [torch.empty(value.type.shape(1), device="meta") for value in graph.inputs]
    weights = {name: tensor.to("meta") for name, tensor in graph.weights.items()}
    held = dict(zip(graph.inputs, inputs, strict=True))
    peak = 0
    for number, (op, results) in enumerate(Interpreter(graph).steps(weights, *inputs)):
        held |= dict(zip(op.results, results, strict=True))
        storages = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in held.values()
        }
        peak = max(peak, sum(storages.values()))
        held = {value: tensor for value, tensor in held.items() if last[value] > number}
    return peak


@pytest.mark.parametrize("name", ["zoo:resnet20", "resnet18", "mobilenet_v2", "mixed"])
def test_memory_is_what_a_run_holds(name: str) -> None:
    """In networks whose reshapes never copy; elsewhere a copy is one more storage, by definition
    not counted."""
    coupling = small_coupling(name)
    cost = CostModel(coupling.graph, coupling)
    plan = random_plan(coupling, np.random.default_rng(4))
    assert cost.measure("memory", cost.full) == observed_peak(coupling.graph)
    assert cost.measure("memory", cost.widths(plan)) == observed_peak(
        slice_graph(coupling.graph, coupling, plan)
    )


def test_memory_of_views_and_outputs() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = x.exp().chunk(2, dim=1)
            small = second[:, :1].neg()
            return first, small.sigmoid()

    coupling = couple(capture(Net(), torch.randn(1, 6, 4)))
    cost = CostModel(coupling.graph, coupling)
    # exp (24 floats) stays whole for its first half; beside it the input, or neg and sigmoid (4
    # each).
    assert cost.measure("memory", cost.full) == 4 * 48
    assert simulated_peak(coupling.graph) == 4 * 48
