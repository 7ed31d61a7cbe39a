"""`Result.apply_`: a user's own module is cut in place, keeps what it is, and computes what the
pruned network does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.applied import Net, assert_same, batch, equal, net, pruned, snapshot
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import UserError

# What stays and what follows


def test_the_module_stays_what_it_is() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    model.stem.weight.requires_grad_(False)
    model.bn.train()
    calls: list[tuple[int, ...]] = []
    hook = model.expand.register_forward_hook(
        lambda module, args, out: calls.append(tuple(out.shape))
    )
    params = {name: id(param) for name, param in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    result = pruned(model, x)
    assert result.apply_(model) is model
    assert {name: id(param) for name, param in model.named_parameters()} == params
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert type(model) is Net
    assert model.bn.training
    assert not model.training
    assert not model.stem.weight.requires_grad
    assert model.expand.weight.requires_grad
    calls.clear()
    model.eval()(x)
    assert calls == [(2, model.expand.out_channels, 8, 8)]
    hook.remove()
    assert_same(model, result, x)


def test_attributes_follow_the_weights() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    result.apply_(model)
    width = {name: len(kept) for name, kept in (result.plan or {}).items()}
    assert width["expand"] < 20
    assert width["grouped"] < 16
    stem, expand, grouped = width["stem"], width["expand"], width["grouped"]
    assert (model.stem.in_channels, model.stem.out_channels, model.bn.num_features) == (
        3,
        stem,
        stem,
    )
    assert (model.expand.in_channels, model.expand.out_channels, model.expand.groups) == (
        stem,
        expand,
        1,
    )
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (
        expand,
    ) * 3
    assert (model.grouped.in_channels, model.grouped.out_channels, model.grouped.groups) == (
        expand,
        grouped,
        2,
    )
    assert (model.norm.num_channels, model.norm.num_groups) == (grouped, 4)
    assert (model.back.in_channels, model.back.out_channels) == (grouped, stem)
    assert (model.head.in_features, model.head.out_features) == (stem, 5)
    assert str(model.expand) == f"Conv2d({stem}, {expand}, kernel_size=(1, 1), stride=(1, 1))"


class Tied(nn.Module):
    """A language model in small: the embedding is the output layer, one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 24)
        self.back = nn.Linear(24, 16)
        self.again = self.back
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for back in (self.back, self.again):
            x = x + back(F.gelu(self.mix(self.norm(x))))
        return self.out(x)


def test_what_is_shared_stays_shared() -> None:
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(0, 11, (2, 6))
    result = pruned(model, tokens)
    result.apply_(model)
    assert model.out.weight is model.embed.weight
    assert model.again is model.back
    width = model.embed.embedding_dim
    assert width == model.out.in_features == model.back.out_features < 16
    assert model.norm.normalized_shape == (width,)
    assert_same(model, result, tokens)
    model(tokens).sum().backward()
    assert model.embed.weight.grad is not None


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.inner_dim = dim
        self.scale = self.head_dim**-0.5
        self.patch_size = self.head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(b, n, 3, self.num_heads, self.head_dim)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        x = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(7, 24)
        self.norm = nn.LayerNorm(24)
        self.attention = Attention(24, 3)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        x = x + self.attention(self.norm(x))
        return self.head((x + self.mlp(x)).mean(1))


def test_a_transformer_block_with_heads_of_its_own() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), batch(2, 5, 7)
    scale = model.attention.scale
    result = pruned(model, x)
    result.apply_(model)
    assert model.attention.head_dim == len((result.plan or {})["attention.qkv"]) // 6 < 8
    assert model.attention.scale == scale
    assert model.attention.patch_size == 8
    assert_same(model, result, x)


def test_attention_of_torch_that_is_left_whole() -> None:
    """Its queries, keys and values must be as wide as the stream; the rest of the network can be
    cut."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48, "num_classes": 5}
    model, x = (
        torchvision.models.VisionTransformer(image_size=16, patch_size=8, **sizes).eval(),
        batch(2, 3, 16, 16),
    )
    result = pruned(model, x, text="prune{ratio=0.4 scope=local}", ignore=["*.self_attention"])
    result.apply_(model)
    assert model.encoder.layers[0].mlp[0].out_features == 29
    assert_same(model, result, x)


def test_whole_heads() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), batch(2, 5, 7)
    manager = pruneopt.PassManager.parse(
        "couple{heads=count},cost,uniform{budget=50%FLOPs},slice,verify"
    )
    result = manager.run(pruneopt.capture(model, x))
    result.apply_(model)
    assert (model.attention.num_heads, model.attention.head_dim) in ((1, 8), (2, 8))
    assert_same(model, result, x)


@pytest.mark.filterwarnings("ignore")  # export on the weights of an LSTM
def test_recurrent_layers() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(5, 10)
            self.lstm = nn.LSTM(10, 8, batch_first=True)
            self.cell = nn.GRUCell(8, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(self.inside(x))
            return self.head(self.cell(y[:, -1], self.cell(y[:, 0])))

    torch.manual_seed(0)
    model, x = Recurrent().eval(), batch(2, 4, 5)
    result = pruned(model, x)
    result.apply_(model)
    width = {name: len(kept) for name, kept in (result.plan or {}).items()}
    assert (model.lstm.input_size, model.lstm.hidden_size) == (width["inside"], width["lstm"])
    assert (model.cell.input_size, model.cell.hidden_size) == (
        width["lstm"],
        model.head.in_features,
    )
    assert model.lstm.hidden_size < 8
    assert_same(model, result, x)


class Guessed(nn.Module):
    """A layer that is none of torch's, with attributes about its channels and about other
    things."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 12, 1, 1))
        self.in_chs, self.out_chs, self.embed_dim, self.dims = 12, 16, 16, [12, 16]
        self.groups, self.dim, self.image_size, self.heads, self.out_dim = 1, 1, 16, 16, 12

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, groups=self.groups).flatten(self.dim + 1)


def test_attributes_of_other_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), Guessed(), nn.Flatten(1), nn.Linear(16 * 16, 4)
    ).eval()
    x = batch(2, 3, 4, 4)
    result = pruned(model, x)
    result.apply_(model)
    layer = model[1]
    assert isinstance(layer, Guessed)
    wide, narrow = len(model[0].get_parameter("weight")), layer.weight.shape[0]
    assert wide < 12
    assert narrow < 16
    assert (layer.in_chs, layer.out_chs, layer.embed_dim, layer.dims) == (
        wide,
        narrow,
        narrow,
        [wide, narrow],
    )
    # Not about channels, or (out_dim) not about what comes out.
    assert (layer.groups, layer.dim, layer.image_size, layer.heads, layer.out_dim) == (
        1,
        1,
        16,
        16,
        12,
    )
    assert_same(model, result, x)


class Spelled(nn.Module):
    """Sizes that the code spells out: of a split, and of the shape of a scale. One more split is of
    positions."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.shape, self.halves = [12, 4, 4], torch.Size((20, 1, 1)), (2, 2)
        self.kernel = (20, 1, 1)
        self.dim_one, self.dim_two = 4, 8
        self.a, self.b = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.scale = nn.Parameter(torch.rand(20) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x * self.scale.view(self.shape)).split(self.halves, -1)
        a, b, c = (left + right).split(self.parts, 1)
        one, two = self.b(c).split([self.dim_one, self.dim_two], 1)
        return torch.cat([self.a(a), b * c, one * one, two], 1)


def test_sizes_that_the_code_spells_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 1), Spelled(), nn.Conv2d(20, 2, 1)).eval()
    x = batch(2, 3, 4, 4)
    result = pruned(model, x)
    result.apply_(model)
    layer = model[1]
    assert isinstance(layer, Spelled)
    width = len(model[0].get_parameter("weight"))
    assert width < 20
    assert (sum(layer.parts), layer.shape) == (width, torch.Size((width, 1, 1)))
    assert layer.dim_one + layer.dim_two == layer.b.out_channels < 12
    assert (type(layer.parts), type(layer.shape), layer.halves, layer.kernel) == (
        list,
        torch.Size,
        (2, 2),
        (20, 1, 1),
    )
    assert_same(model, result, x)


def test_a_tensor_that_is_a_plain_attribute() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.scale = torch.rand(8, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale)

    torch.manual_seed(0)
    model, x = Scaled().eval(), batch(2, 3, 4, 4)
    result = pruned(model, x)
    result.apply_(model)
    assert model.scale.shape == (model.a.out_channels, 1, 1)
    assert_same(model, result, x)


# Weights


def test_weights_of_the_module_or_of_the_result() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    mine, theirs = net(), net()
    with torch.no_grad():
        for param in [*mine.parameters(), *theirs.parameters()]:
            param.mul_(2)
    kept = (result.plan or {})["expand"]
    result.apply_(theirs)
    assert torch.equal(theirs.get_parameter("expand.bias"), model.expand.bias[kept])
    result.apply_(mine, weights="model")
    assert torch.equal(mine.get_parameter("expand.bias"), 2 * model.expand.bias[kept])
    with pytest.raises(UserError, match="weights='mine' must be 'result' or 'model'"):
        result.apply_(model, weights="mine")  # type: ignore[arg-type]


def test_masked_weights_are_zero() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    graph = pruneopt.capture(model, x)
    result = pruneopt.PassManager.parse(
        "couple,cost,l1{granularity=weight ratios=0.5},slice,verify"
    ).run(graph)
    assert result.masks
    result.apply_(model, weights="model")
    for name, mask in result.masks.items():
        assert torch.equal(model.get_parameter(name) == 0, ~mask)


def test_type_and_layout_are_those_of_the_module() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    other = net().to(memory_format=torch.channels_last).to(torch.bfloat16)
    result.apply_(other)
    assert {param.dtype for param in other.parameters()} == {torch.bfloat16}
    assert other.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not other.stem.weight.is_contiguous()
    result.apply_(net().double())


def test_parametrised_weights() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    nn.utils.parametrizations.weight_norm(model.expand)
    result = pruned(model, x)
    result.apply_(model)
    assert model.expand.out_channels == model.expand.weight.shape[0]
    assert_same(model, result, x)


# Nothing or all


class Fixed(nn.Module):
    """Its code knows that there are 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.head(y.view(len(y), 12, -1).mean(2))


class Scaling(nn.Module):
    """Runs at any size, but the scale of attention follows the size."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.qkv, self.proj = nn.Linear(6, 48), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))


def line_of(kind: type, text: str) -> int:
    lines, first = inspect.getsourcelines(kind)
    return next(first + number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("make", "x", "line", "said"),
    [
        (
            Fixed,
            batch(2, 3, 4, 4),
            "y.view(len(y), 12",
            r"shape '\[.*12, -1\]' is invalid.*ignore=\['0.b'\]",
        ),
        (
            Scaling,
            batch(2, 5, 6),
            "scaled_dot",
            r"has scale=None, where the pruned network has 0.35.*ignore=\['0.qkv'\]",
        ),
    ],
)
def test_code_that_fixes_a_size_is_named_and_all_is_put_back(
    make: Callable[[], nn.Module], x: Tensor, line: str, said: str
) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(make()).eval()
    optimizer = torch.optim.AdamW(holder.parameters())
    holder(x).sum().backward()
    optimizer.step()
    result = pruned(holder, x)
    before = snapshot(holder.train(), optimizer)
    where = rf"test_apply.py:{line_of(type(holder[0]), line)}\D"
    with pytest.raises(UserError, match=where) as caught:
        result.apply_(holder, optimizer)
    assert re.search(said, str(caught.value))
    assert "The module is as it was before: use result.module" in str(caught.value)
    assert equal(snapshot(holder, optimizer), before)
    assert holder[0].training
    # The advice is right.
    name = re.search(r"ignore=\['(.*?)'\]", str(caught.value))
    assert name is not None
    kept = pruned(holder.eval(), x, text="prune{ratio=0.3 scope=local}", ignore=[name[1]])
    kept.apply_(holder, optimizer)
    assert_same(holder, kept, x)


def test_heads_that_only_training_reads() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)
            self.aux = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            return (self.b(y), self.aux(y)) if self.training else self.b(y)

    torch.manual_seed(0)
    model, x = Auxiliary().eval(), batch(2, 3, 4, 4)
    result = pruned(model, x)
    before = snapshot(model)
    with pytest.raises(
        UserError,
        match=r"aux.weight takes no part in evaluation, .* training needs it: module aux \(Conv2d",
    ):
        result.apply_(model)
    assert equal(snapshot(model), before)


@pytest.mark.filterwarnings("ignore")  # that scripting is no longer advised
def test_another_network() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    with pytest.raises(
        UserError, match=r"Block has no stem.weight.*give the module that was captured"
    ):
        result.apply_(Block())
    result.apply_(model)
    with pytest.raises(
        UserError, match=r"stem.weight of Net has the shape .*it may have been cut already"
    ):
        result.apply_(model)
    with pytest.raises(UserError, match="no pass has decided which channels stay"):
        pruneopt.PassManager.parse("couple").run(pruneopt.capture(net(), x)).apply_(net())
    with pytest.raises(UserError, match="is scripted"):
        result.apply_(torch.jit.trace(net(), x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "densenet121",
        "regnet_y_400mf",
        "convnext_tiny",
        "efficientnet_b0",
        "mnasnet0_5",
        "squeezenet1_1",
        "vgg11_bn",
    ],
)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)(weights=None).eval(), batch(2, 3, 64, 64)
    result = pruned(model, x)
    count = sum(param.numel() for param in model.parameters())
    result.apply_(model)
    assert sum(param.numel() for param in model.parameters()) < 0.8 * count
    assert_same(model, result, x)
