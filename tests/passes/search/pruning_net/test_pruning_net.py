"""PruningNet on networks of every kind: what it computes is the sliced network with the cropped
weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.mobilenet_v2 import MobileNetV2
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.search.pruning_net.hypernet import Form, Sizes
from pruneopt.passes.search.pruning_net.pruning_network import PruningNet

GRID = [(10 + 3 * i) / 100 for i in range(31)]


class Joined(nn.Module):
    """Two layers joined, a grouped layer over a part of them, a normalised sum, flattened into
    linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(20)
        self.mixed = nn.Conv2d(20, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.flat = nn.Linear(24 * 16, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = self.grouped(torch.relu(self.mixed(x))).flatten(1)
        return self.head(torch.relu(self.flat(x)))


class Attention(nn.Module):
    """Patches with a position embedding, two heads over split channels, a residual stream and layer
    norms."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.position = nn.Parameter(torch.randn(4, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 36), nn.Linear(12, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.reshape(-1, 4, 2, 6).transpose(1, 2) for t in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, 12)
        x = x + self.out(y)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean(1))


class Shuffled(nn.Module):
    """A channel shuffle between grouped layers, then half of the channels passed by
    (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.a = nn.Conv2d(16, 16, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(torch.relu(self.stem(x))))
        x = x.view(-1, 2, 8, 4, 4).transpose(1, 2).reshape(-1, 16, 4, 4)
        kept, changed = x.chunk(2, 1)
        return self.head(torch.cat([kept, torch.relu(self.b(changed))], 1).mean((2, 3)))


def small_mobilenet() -> nn.Module:
    return MobileNetV2(8, ((8, 1, 1), (12, 2, 2)), 10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual stages": (lambda: DigitsResNet((6, 8, 12)), (4, 1, 8, 8)),
    "concatenation, groups, flatten": (Joined, (4, 3, 4, 4)),
    "attention": (Attention, (4, 3, 4, 4)),
    "shuffle": (Shuffled, (4, 3, 4, 4)),
    "inverted residuals": (small_mobilenet, (2, 3, 28, 28)),
}


@cache
def coupled(name: str) -> tuple[Coupling, Tensor]:
    """Return the coupling of a network and an input."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    x = torch.randn(shape)
    return couple(capture(make(), x)), x


def net_of(coupling: Coupling, *, tied: bool = False, **options: object) -> PruningNet:
    """Return a PruningNet in which every free group, or as MetaPruning has it, is searched."""
    groups = [group.name for group in coupling.free]
    genes = metapruning_genes(coupling)
    searched = (
        [name for gene in genes if gene.frozen is None for name in gene.groups] if tied else groups
    )
    return PruningNet(coupling, groups, searched, GRID, **options)  # type: ignore[arg-type]


def random_widths(coupling: Coupling, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths and scales of all free groups."""
    indices = np.random.default_rng(seed).integers(0, 31, len(coupling.free))
    widths = [
        max(1, group.width // group.step * (10 + 3 * int(i)) // 100) * group.step
        for group, i in zip(coupling.free, indices, strict=True)
    ]
    return np.array(widths), np.array(GRID)[indices]


def sliced(net: PruningNet, widths: np.ndarray) -> nn.Module:
    """Return the full network with the full generated weights and fresh batch norms, sliced to the
    first units."""
    coupling = net.coupling
    graph = coupling.graph.copy()
    weights = {name: tensor.detach().clone() for name, tensor in net.full_weights().items()}
    for name, value in graph.params.items():
        if name not in weights:
            shape = value.type.shape()
            ones = name.endswith(("running_var", "weight"))
            weights[name] = (
                torch.ones(shape) if ones else torch.zeros(shape, dtype=graph.weights[name].dtype)
            )
    graph.weights = weights
    plan = {}
    for group, width in zip(coupling.free, widths.tolist(), strict=True):
        plan[group.name] = np.sort(
            np.concatenate([block[: width // group.step] for block in group.blocks])
        )
    small = slice_graph(graph, coupling, plan)
    return build_module(small, small.weights)


@pytest.mark.parametrize("form", ["full", "low-rank", "chunked"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_sliced_network_with_the_cropped_weights(name: str, form: Form) -> None:
    coupling, x = coupled(name)
    net = net_of(coupling, sizes=Sizes(form, chunk=100))
    for seed in range(3):
        widths, scales = random_widths(coupling, seed)
        net.choose(widths, scales)
        reference = sliced(net, widths)
        for training in (False, True):
            mine = copy.deepcopy(net).train(training)
            theirs = copy.deepcopy(reference).train(training)
            with torch.no_grad():
                torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), net.candidate()(x), rtol=1e-6, atol=1e-6)


def test_a_weight_is_what_the_published_formula_says() -> None:
    """``B + M relu(A v + a)``, reshaped and cropped to the leading slice; v = (mid, in, out)."""
    coupling, _ = coupled("residual stages")
    net = net_of(coupling, tied=True)
    groups = {group.name: group.width for group in coupling.free}
    scale = dict.fromkeys(groups, 1.0) | {
        "layer1.1.conv1": 0.52,
        "conv1": 0.7,
        "layer2": 0.4,
        "layer2.0.conv1": 0.31,
    }
    widths = np.array([int(width * scale[name]) for name, width in groups.items()])
    net.choose(widths, np.array([scale[name] for name in groups]))
    for name, inputs, shape in (
        ("layer1.1.conv1.weight", (0.52, 0.7, 0.7), (3, 4)),
        ("layer2.0.conv2.weight", (0.31, 0.7, 0.4), (3, 2)),
        ("layer2.0.project.0.weight", (0.31, 0.7, 0.4), (3, 4)),
        ("conv1.weight", (0.7,), (4, 1)),
    ):
        number = [weight.name for weight in net.generated].index(name)
        state = {
            key: value.double().numpy() for key, value in net.hypernets[number].state_dict().items()
        }
        hidden = np.maximum(state["first.weight"] @ np.array(inputs) + state["first.bias"], 0)
        full = (state["second.weight"] @ hidden + state["second.bias"]).reshape(
            coupling.graph.weights[name].shape
        )
        wanted = full[: net.weights()[name].shape[0], : net.weights()[name].shape[1]]
        np.testing.assert_allclose(
            net.weights()[name].detach().numpy(), wanted, rtol=1e-5, atol=1e-6
        )
        assert wanted.shape[0] == {"layer2.0.conv2.weight": 3}.get(name, shape[0])


def test_only_the_leading_slice_learns() -> None:
    coupling, x = coupled("residual stages")
    net = net_of(coupling).train()
    widths, scales = random_widths(coupling, 1)
    net.choose(widths, scales)
    net(x).square().sum().backward()
    number = [weight.name for weight in net.generated].index("layer1.0.conv2.weight")
    gradient = net.hypernets[number].second.bias.grad.reshape(6, 6, 3, 3)
    out, read = net.weights()["layer1.0.conv2.weight"].shape[:2]
    assert (out, read) != (6, 6)
    assert gradient[:out, :read].abs().min() > 0
    assert gradient[out:].abs().max() == gradient[:, read:].abs().max() == 0


def test_every_parameter_learns() -> None:
    for name in NETWORKS:
        coupling, x = coupled(name)
        net = net_of(coupling, affine=True).train()
        net.choose(*random_widths(coupling, 0))
        net(x).square().sum().backward()
        assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


def test_layers_that_no_search_touches_are_ordinary() -> None:
    """The classifier, and with MetaPruning's genes its input: it is an ordinary linear layer, never
    cropped."""
    coupling, _ = coupled("residual stages")
    net = net_of(coupling, tied=True)
    assert set(net.ordinary) == {"classifier/weight", "classifier/bias"}
    widths = np.array([group.width if group.name == "layer3" else 1 for group in coupling.free])
    net.choose(widths)
    assert net.weights()["classifier.weight"].shape == (10, 12)


def test_parameters_outside_layers_start_from_the_given_values() -> None:
    coupling, _ = coupled("attention")
    net = net_of(coupling)
    assert net.inherited == ["position"]
    assert torch.equal(net.ordinary["position"], coupling.graph.weights["position"])
    assert not torch.equal(net.ordinary["head/weight"], coupling.graph.weights["head.weight"])


def test_weight_decay_is_for_hypernetworks_and_ordinary_layers() -> None:
    coupling, _ = coupled("residual stages")
    net = net_of(coupling, tied=True, affine=True)
    names = {name for name, _ in net.named_parameters()}
    rest = names - net.decayed()
    assert {"ordinary.classifier/weight", "ordinary.classifier/bias"} <= net.decayed()
    assert {name for name in names if name.startswith("hypernets.")} <= net.decayed()
    assert rest == {name for name in names if name.startswith("norms.")} != set()
    coupling, _ = coupled("attention")
    assert {name for name, _ in net_of(coupling).named_parameters()} - net_of(
        coupling
    ).decayed() == {
        f"ordinary.{name}"
        for name in ("position", "norm/weight", "norm/bias", "patches/bias", "qkv/bias", "out/bias")
    } | {"ordinary.up/bias", "ordinary.down/bias"}


def test_the_same_seed_gives_the_same_network() -> None:
    coupling, _ = coupled("attention")
    a, b, c = net_of(coupling, seed=3), net_of(coupling, seed=3), net_of(coupling, seed=4)
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    assert not all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True)
    )


# Batch norm


def rows_changed(net: PruningNet, name: str) -> list[int]:
    """Which sets of statistics are no longer the initial ones."""
    return torch.nonzero(net.norms[name.replace(".", "/")].mean.abs().sum(1)).reshape(-1).tolist()


def test_the_bank_has_statistics_for_every_scale() -> None:
    coupling, x = coupled("residual stages")
    net = net_of(coupling, tied=True).train()
    widths, scales = random_widths(coupling, 5)
    names = [group.name for group in coupling.free]
    widths[names.index("layer3")], scales[names.index("layer3")] = 12, 1.0
    net.choose(widths, scales)
    reference = net.candidate().train()
    net(x)
    reference(x)  # nn.BatchNorm2d, from mean 0 and variance 1, momentum 0.1
    for norm, group in (
        ("bn1", "conv1"),
        ("layer1.0.bn2", "conv1"),
        ("layer2.0.bn1", "layer2.0.conv1"),
    ):
        row = round((scales[names.index(group)] - 0.1) / 0.03)
        width = widths[names.index(group)]
        bank = net.norms[f"{norm}/running_mean".replace(".", "/")]
        assert rows_changed(net, f"{norm}.running_mean") == [row]
        layer = reference.get_submodule(norm)
        torch.testing.assert_close(bank.mean[row, :width], layer.running_mean)
        torch.testing.assert_close(bank.variance[row, :width], layer.running_var)
        assert bank.mean[row, width:].abs().sum() == 0
        assert bank.mean.shape[0] == 31
        assert bank.weight is None


def test_a_norm_of_fixed_width_goes_by_what_the_layer_before_reads() -> None:
    """MobileNetV2's last convolution has one width; its statistics go by the width of its input."""
    coupling, x = coupled("inverted residuals")
    net = net_of(coupling, tied=True).train()
    names = [group.name for group in coupling.free]
    assert "conv_last" in names
    scales = np.ones(len(names))
    stage = next(weight for weight in net.generated if weight.name == "conv_last.weight").groups
    assert len(stage) == 1
    scales[names.index(stage[0])] = GRID[17]
    full = np.array([group.width for group in coupling.free])
    net.choose((full * scales).astype(int), scales)
    net(x)
    assert rows_changed(net, "bn_last.running_mean") == [17]
    assert rows_changed(net, "bn_stem.running_mean") == [30]


def test_channels_of_several_groups_each_take_their_own_set() -> None:
    coupling, x = coupled("concatenation, groups, flatten")
    net = net_of(coupling).train()
    names = [group.name for group in coupling.free]
    scales = np.ones(len(names))
    scales[names.index("left")], scales[names.index("right")] = GRID[10], GRID[20]
    net.choose((np.array([group.width for group in coupling.free]) * scales).astype(int), scales)
    net(x)
    changed = net.norms["norm/running_mean"].mean != 0
    assert torch.nonzero(changed[10]).reshape(-1).tolist() == list(range(3))  # int(8 * 0.40)
    assert torch.nonzero(changed[20]).reshape(-1).tolist() == list(range(8, 16))  # int(12 * 0.70)
    assert rows_changed(net, "norm.running_mean") == [10, 20]


def test_one_set_for_all_widths() -> None:
    coupling, x = coupled("residual stages")
    net = net_of(coupling, norms="recalibrate", affine=True).train()
    assert {bank.mean.shape[0] for bank in net.norms.values()} == {1}
    for seed in range(2):
        net.choose(*random_widths(coupling, seed))
        net(x)
    assert rows_changed(net, "bn1.running_mean") == [0]
    assert net.norms["bn1/running_mean"].weight.shape == (1, 6)


def test_evaluation_leaves_statistics_alone() -> None:
    coupling, x = coupled("residual stages")
    net = net_of(coupling).eval()
    net.choose(*random_widths(coupling, 0))
    net(x)
    assert all(not bank.mean.any() for bank in net.norms.values())


# Mistakes


def test_widths_come_first() -> None:
    coupling, x = coupled("residual stages")
    with pytest.raises(InternalError, match="before widths were chosen"):
        net_of(coupling)(x)


def test_nothing_to_search() -> None:
    coupling, _ = coupled("residual stages")
    with pytest.raises(UserError, match="has a width to search"):
        PruningNet(coupling, [group.name for group in coupling.free], [], GRID)
