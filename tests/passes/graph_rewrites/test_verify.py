"""The proof can fail: whatever is wrong in a pruned network or in the analysis, it says so and
names the op."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import Net as NetOf
from torch import nn
from torch.nn import functional as F

from pruneopt.errors import PruneoptError, UserError, VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.finite import check_finite
from pruneopt.ir.graph import Graph, Op
from pruneopt.passes.analysis.channels import units
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.ops import pointwise
from pruneopt.passes.analysis.ops.definition import OpDefinition
from pruneopt.passes.analysis.ops.table import OPS
from pruneopt.passes.graph_rewrites import verify
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import MaskedOriginal, verify_pruned

Plans = Callable[[Coupling, int | None], dict[str, np.ndarray]]
IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolutions (plain, grouped, depthwise), batch norm, and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = (
            nn.Conv2d(4, 12, 3),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 3, groups=3),
        )
        self.d, self.out = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.a(x)))
        x = self.b(x).sigmoid()
        result: torch.Tensor = self.out(self.d(x).flatten(1))
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        result: torch.Tensor = self.out(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return result


class Functional(nn.Module):
    """A convolution, some reordering of its channels, and a layer that reads them."""

    def __init__(
        self, reorder: Callable[[torch.Tensor], torch.Tensor], channels: int, features: int
    ) -> None:
        super().__init__()
        self.reorder = reorder
        self.a, self.b = nn.Conv2d(4, channels, 3, padding=1), nn.Conv2d(4, channels, 3, padding=1)
        self.out = nn.Linear(features, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.reorder(self.a(x) * self.b(x).sigmoid())
        result: torch.Tensor = self.out(y.flatten(1))
        return result


def prepared(
    model: nn.Module, x: torch.Tensor, make_plan: Plans, seed: int = 3
) -> tuple[Graph, Coupling, Any, Graph]:
    torch.manual_seed(0)
    graph = capture(model.eval(), x)
    coupling = couple(graph)
    plan = make_plan(coupling, seed)
    assert any(len(kept) < coupling.group(name).width for name, kept in plan.items())
    return graph, coupling, plan, slice_graph(graph, coupling, plan)


def find(graph: Graph, base: str, module: str = "") -> Op:
    return next(op for op in graph.ops if op.base == base and op.loc.module == module)


def test_a_right_network_is_proved(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    proof = verify_pruned(graph, coupling, plan, pruned, [IMAGE])
    assert proof.equivalent
    assert proof.scale > 0
    assert proof.max_abs_error < 1e-9
    assert proof.max_abs_error_float32 is not None
    assert proof.max_abs_error_float32 < 1e-4
    assert verify_pruned(graph, coupling, plan, pruned).max_abs_error_float32 is None


class Noisy(nn.Module):
    """Numbers are drawn in evaluation mode, for all channels alike and as often as there are
    samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x) + torch.randn(x.shape[0], 1, 1, 1)).relu()
        return self.out((x * torch.rand(1)).mean((2, 3)))


def test_what_is_drawn_is_drawn_once_for_both(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Noisy(), IMAGE, make_plan)
    state = torch.random.get_rng_state()
    assert verify_pruned(graph, coupling, plan, pruned, [IMAGE]).equivalent
    assert torch.equal(state, torch.random.get_rng_state())
    pruned.weights["b.weight"] = pruned.weights["b.weight"].flip(0)
    with pytest.raises(VerificationError, match=r"b\.weight"):
        verify_pruned(graph, coupling, plan, pruned)


# Wrong weights: they must be the original's slices, bit by bit


@pytest.mark.parametrize(
    "name", ["a.weight", "bn.weight", "bn.running_mean", "bn.running_var", "b.weight", "out.weight"]
)
def test_exchanged_entries_are_named(name: str, make_plan: Plans) -> None:
    model = Net()
    with torch.no_grad():
        for tensor in [*model.parameters(), model.bn.running_mean, model.bn.running_var]:
            tensor.add_(torch.rand(tensor.shape))
    graph, coupling, plan, pruned = prepared(model, IMAGE, make_plan)
    tensor = pruned.weights[name]
    axis = 1 if name == "out.weight" else 0
    pruned.weights[name] = tensor.roll(1, axis)
    assert not torch.equal(pruned.weights[name], tensor)
    with pytest.raises(VerificationError, match=f"the weight {re.escape(name)} of aten"):
        verify_pruned(graph, coupling, plan, pruned)


def test_a_wrong_column_is_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    kept = pruned.weights["out.weight"].shape[1]
    pruned.weights["out.weight"] = graph.weights["out.weight"][:, -kept:].clone()
    with pytest.raises(VerificationError, match=r"the weight out\.weight of aten\.linear"):
        verify_pruned(graph, coupling, plan, pruned)


def test_a_slice_too_short_is_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    pruned.weights["out.weight"] = pruned.weights["out.weight"][:, :-1]
    with pytest.raises(VerificationError, match="linear"):
        verify_pruned(graph, coupling, plan, pruned, [IMAGE])


def test_nan_weights_prove_nothing(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    graph.weights["a.weight"] = graph.weights["a.weight"].clone()
    graph.weights["a.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(VerificationError, match=r"a\.weight holds NaN"):
        verify_pruned(graph, coupling, plan, pruned)


def test_delivered_nan_is_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    pruned.weights["out.bias"] = torch.full_like(pruned.weights["out.bias"], float("nan"))
    with pytest.raises(VerificationError, match=r"the weight out\.bias"):
        verify_pruned(graph, coupling, plan, pruned)


def test_a_wrong_value_on_real_input_only(
    make_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    monkeypatch.setattr(verify, "_check_delivered", lambda *_: None)
    pruned.weights["out.bias"] = pruned.weights["out.bias"] + 0.1
    with pytest.raises(VerificationError, match=r"by 0\.1 on real input"):
        verify_pruned(graph, coupling, plan, pruned, [IMAGE])


# Wrong attributes and wiring


def test_wrong_groups_are_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    pruned.set_attr(find(pruned, "conv2d", "b"), "groups", 1)
    with pytest.raises(VerificationError, match=r"conv2d.*\(b at"):
        verify_pruned(graph, coupling, plan, pruned)


def test_a_lost_scale_of_attention_is_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Attention(), TOKENS, make_plan, seed=1)
    op = next(op for op in pruned.ops if op.base == "scaled_dot_product_attention")
    assert op.attrs["scale"] == pytest.approx(0.5)
    pruned.set_attr(op, "scale", None)
    with pytest.raises(VerificationError, match="scaled_dot_product_attention"):
        verify_pruned(graph, coupling, plan, pruned)


def test_exchanged_running_statistics_are_named(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    op = find(pruned, "batch_norm", "bn")
    mean, scale = op.value(3), op.value(1)
    pruned.set_operand(op, 3, scale)
    pruned.set_operand(op, 1, mean)
    with pytest.raises(VerificationError, match=r"batch_norm.*\(bn at"):
        verify_pruned(graph, coupling, plan, pruned)


def test_another_plan_than_the_networks(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    other = {name: coupling.group(name).width - 1 - kept[::-1] for name, kept in plan.items()}
    assert any(not np.array_equal(other[name], plan[name]) for name in plan)
    with pytest.raises(VerificationError, match="the weight"):
        verify_pruned(graph, coupling, other, pruned, [IMAGE])


# A wrong analysis


def shuffle(x: torch.Tensor) -> torch.Tensor:
    return x.view(2, 2, 6, 8, 8).transpose(1, 2).reshape(2, 12, 8, 8)


WRONG_RULES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], int]] = {
    # An op whose labels pass as if it did nothing
    "flip": ("flip", lambda x: x.flip(1), 768),
    "roll": ("roll", lambda x: x.roll(1, 1), 768),
    "shuffle": ("channel_shuffle", lambda x: F.channel_shuffle(x, 2), 768),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_an_op_taken_for_the_identity_is_found(
    name: str, make_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, reorder, features = WRONG_RULES[name]

    def identity(labels: Labels, op: Op) -> None:
        source, after = op.value(0), labels.shape(op.result)
        assert source is not None
        planes = [plane.expand(labels.shape(source)).contiguous() for plane in labels.of(source)]
        labels.set(op.result, [plane.reshape(after) for plane in planes])

    graph = capture(Functional(reorder, 12, features).eval(), IMAGE)
    if not any(op.base == base for op in graph.ops):
        base = "native_channel_shuffle"
    monkeypatch.setitem(OPS, base, OpDefinition(rule=identity))
    coupling = couple(graph)
    plan = make_plan(coupling, 3)
    with pytest.raises(VerificationError, match=base):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


def test_the_wrong_order_of_a_flatten_is_found(
    make_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels first where they are last: what the peers get wrong without noticing."""

    def flatten(labels: Labels, op: Op) -> None:
        source = op.value(0)
        assert source is not None
        labels.set(
            op.result,
            [plane.reshape(-1).repeat_interleave(64)[None] for plane in labels.of(source)],
        )

    graph = capture(Functional(lambda x: x.permute(0, 2, 3, 1), 12, 768).eval(), IMAGE)
    monkeypatch.setitem(OPS, "flatten", OpDefinition(rule=flatten))
    coupling = couple(graph)
    plan = make_plan(coupling, 3)
    with pytest.raises(VerificationError, match="flatten"):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


def test_a_union_left_out_is_found(make_plan: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    def pick_first(labels: Labels, op: Op, sides: Any) -> Any:
        return list(sides[0][0])

    graph = capture(Functional(lambda x: x, 12, 768).eval(), IMAGE)
    monkeypatch.setattr(pointwise, "merge_pointwise", pick_first)
    coupling = couple(graph)
    assert {"a", "b"} <= {group.name for group in coupling.free}
    plan = {"a": np.arange(5), "b": np.arange(3)}
    with pytest.raises(PruneoptError, match="mul"):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))
    plan = {"a": np.arange(5), "b": np.arange(1, 6)}
    with pytest.raises(VerificationError, match="mul"):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


def test_an_untied_shuffle_is_found(make_plan: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(Functional(shuffle, 12, 768).eval(), IMAGE)
    monkeypatch.setattr(units, "view_blocks", lambda labels: [])
    coupling = couple(graph)
    assert coupling.group("a").step == 1
    plan = {"a": np.array([0, 1, 2, 7])}
    with pytest.raises(PruneoptError):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


# The reference


def test_the_masked_original_keeps_its_size(make_plan: Plans) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    reference = MaskedOriginal(graph, coupling, plan, pruned)
    for op, results in reference.steps(graph.weights, IMAGE):
        for value, tensor in zip(op.results, results, strict=True):
            assert tuple(tensor.shape) == value.type.shape(2)
            assert reference.mask(value, tuple(tensor.shape)).shape == tensor.shape


def test_producers_are_not_zeroed(make_plan: Plans) -> None:
    """The values of a removed channel (sigmoid of zero is not zero) must not reach its consumers;
    producers stay."""
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    first = next(MaskedOriginal(graph, coupling, plan, pruned).steps(graph.weights, IMAGE))
    torch.testing.assert_close(
        first[1][0], F.conv2d(IMAGE, graph.weights["a.weight"], graph.weights["a.bias"])
    )


def test_statistics_over_removed_channels_are_reported(make_plan: Plans) -> None:
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.GroupNorm(2, 16), nn.Conv2d(16, 3, 1))
    graph, coupling, plan, pruned = prepared(model, IMAGE, make_plan, seed=0)
    notes = verify_pruned(graph, coupling, plan, pruned).notes
    assert len(notes) == 1
    assert "group_norm" in notes[0]
    assert not verify_pruned(graph, coupling, {}, slice_graph(graph, coupling, {})).notes


def test_single_precision_inside_is_proved_in_double(make_plan: Plans) -> None:
    class Upcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(5, 8)
            result: torch.Tensor = self.b(
                F.softmax(self.a(x).float() + mask, 1, dtype=torch.float32).to(torch.float32)
            )
            return result

    graph, coupling, plan, pruned = prepared(Upcast(), TOKENS, make_plan)
    assert verify_pruned(graph, coupling, plan, pruned).max_abs_error < 1e-12


class Words(nn.Module):
    """Tokens in, scores of the next one out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(7, 6), nn.Linear(6, 8), nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.inner(self.words(x))))
        return scores


def test_whole_numbers_as_real_input_are_proved_in_single(make_plan: Plans) -> None:
    tokens = torch.randint(0, 7, (2, 3))
    graph, coupling, plan, pruned = prepared(Words(), tokens, make_plan)
    proof = verify_pruned(graph, coupling, plan, pruned, [tokens])
    assert proof.max_abs_error < 1e-12
    assert proof.max_abs_error_float32 is not None
    assert proof.max_abs_error_float32 < 1e-5


def _line(forward: Callable[..., torch.Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return NetOf(forward, a=nn.Linear(12, 16), b=nn.Linear(16, 4))


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (lambda s, x: s.b((s.a(x) - 100).log()), r"aten\.log .*:\d+"),
        (lambda s, x: s.b(s.a(x) / (s.a(x) * 0)), r"aten\.div.*:\d+"),
        (lambda s, x: s.b((s.a(x) * 0 + 1e4).exp()), r"aten\.exp .*:\d+"),
        (lambda s, x: s.b(torch.nan_to_num((s.a(x) - 99).sqrt())), r"aten\.sqrt .*:\d+"),
        (lambda s, x: s.b(s.a(x)).new_full((2, 5, 4), math.nan) + s.b(s.a(x)), r"aten\.new_full"),
    ],
)
def test_values_that_are_not_finite_prove_nothing(
    make_plan: Plans, forward: Callable[..., torch.Tensor], named: str
) -> None:
    graph, coupling, plan, pruned = prepared(_line(forward), TOKENS, make_plan)
    with pytest.raises(VerificationError, match=f"computes NaN.*{named}"):
        verify_pruned(graph, coupling, plan, pruned)
    with pytest.raises(UserError, match=f"computes .*{named}"):
        check_finite(graph, graph.weights, [TOKENS])


def test_what_overflows_in_float32_only_is_refused_on_real_input(make_plan: Plans) -> None:
    model = _line(lambda s, x: s.b((s.a(x) * 1e25) * 1e25 * 1e-25 * 1e-25))
    graph, coupling, plan, pruned = prepared(model, TOKENS, make_plan)
    assert verify_pruned(graph, coupling, plan, pruned).equivalent
    with pytest.raises(VerificationError, match=r"infinity of finite numbers, at aten\.mul.*:\d+"):
        verify_pruned(graph, coupling, plan, pruned, [TOKENS])
    with pytest.raises(UserError, match=r"beyond what torch\.float32 holds at aten\.mul"):
        check_finite(graph, graph.weights, [TOKENS])


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.b(_attend(s.a(x), torch.full((5, 5), -math.inf).triu(1))),
        lambda s, x: s.b(_attend(s.a(x), (1 - torch.ones(5, 5).triu(1).long()).log())),
        lambda s, x: s.b(_attend(s.a(x).abs().sqrt(), torch.zeros(5, 5))),
        lambda s, x: s.b(s.a(x.abs()).abs().log()),
        lambda s, x: s.b(x.sqrt().matmul(s.a.weight.t())),
    ],
)
def test_infinities_that_are_written_are_no_failure(
    make_plan: Plans, forward: Callable[..., torch.Tensor]
) -> None:
    """And roots of what is never negative: the proof looks for inputs that the network can take."""
    graph, coupling, plan, pruned = prepared(_line(forward), TOKENS.abs(), make_plan)
    assert verify_pruned(graph, coupling, plan, pruned, [TOKENS.abs()]).equivalent
    check_finite(graph, graph.weights, [TOKENS.abs()])


def _attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(1, 2) + mask).softmax(-1) @ x


def test_a_nan_of_the_pruned_network_alone_is_a_difference(
    make_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, coupling, plan, pruned = prepared(Net(), IMAGE, make_plan)
    monkeypatch.setattr(verify, "_check_delivered", lambda *_: None)
    pruned.weights["out.bias"] = torch.full_like(pruned.weights["out.bias"], float("nan"))
    with pytest.raises(VerificationError, match="by nan on real input"):
        verify_pruned(graph, coupling, plan, pruned, [IMAGE])
