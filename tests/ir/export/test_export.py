"""Exported programs and ONNX files compute what the module computes, at every batch size, and
appear whole or never."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt import files
from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.compare import same_outputs
from pruneopt.ir.export import export
from pruneopt.ir.export.export import export_onnx, export_pt2, run_onnx


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up, self.fc = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.hardswish(self.bn(self.conv(x)))
        left, right = self.depthwise(x).chunk(2, dim=1)
        x = self.up(torch.cat([right, left], 1))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return {"out": self.fc(F.dropout(x, 0.5, self.training).mean((2, 3))), "map": x}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 48)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        n, length, width = x.shape
        q, k, v = self.fc(x).reshape(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        return (
            F.scaled_dot_product_attention(q, k, v)
            .transpose(1, 2)
            .reshape(n * length, width)
            .view(n, -1)
        )


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.shift = nn.Embedding(11, 8), nn.Linear(3, 8)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm((self.words(ids).sum(1) + self.shift(x)).view(x.shape[0], 8, 1))
        return torch.einsum("nch,cd->ndh", y, self.words.weight[:8]), y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "convolutions": (Convolutions, lambda n: (torch.randn(n, 4, 7, 7),)),
    "attention": (Attention, lambda n: (torch.randn(n, 5, 16),)),
    "words": (Words, lambda n: (torch.randint(0, 11, (n, 4)), torch.randn(n, 3))),
}


def generated(name: str) -> tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]:
    """The module generated from a network, as it is delivered."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    graph = capture(make(), inputs(2))
    return build_module(graph, graph.weights), inputs


def check_pt2(module: nn.Module, inputs: Callable[[int], tuple[Tensor, ...]], path: Path) -> None:
    program = torch.export.load(path).module()
    for batch in (1, 2, 7):
        given = inputs(batch)
        with torch.no_grad():
            same_outputs(program(*given), module.eval()(*given), 1e-5, 1e-4)


def check_onnx(
    module: nn.Module, inputs: Callable[[int], tuple[Tensor, ...]], path: Path, atol: float = 1e-4
) -> None:
    for batch in (1, 2, 7):
        given = inputs(batch)
        with torch.no_grad():
            same_outputs(
                run_onnx(path, given), pytree.tree_leaves(module.eval()(*given)), atol, 1e-3
            )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_pt2(name: str, batch: int, tmp_path: Path) -> None:
    module, inputs = generated(name)
    export_pt2(module, inputs(batch), tmp_path / "net.pt2")
    check_pt2(module, inputs, tmp_path / "net.pt2")
    assert os.listdir(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnx

    module, inputs = generated(name)
    export_onnx(module, inputs(1), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    check_onnx(module, inputs, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["net.onnx"]
    dims = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"
    given = inputs(2)
    with pytest.raises(UserError, match=f"takes {len(given)} inputs?, {len(given) - 1} were given"):
        run_onnx(tmp_path / "net.onnx", given[:-1])


def test_a_program_can_be_captured_again(tmp_path: Path) -> None:
    module, inputs = generated("convolutions")
    export_pt2(module, inputs(2), tmp_path / "net.pt2")
    graph = capture(tmp_path / "net.pt2", trusted=True)
    assert set(graph.params) == set(module.state_dict())
    again = build_module(graph, graph.weights)
    given = inputs(3)
    with torch.no_grad():
        same_outputs(again(*given), module(*given), 1e-5, 1e-5)


def test_exporting_keeps_the_mode(tmp_path: Path) -> None:
    module, inputs = generated("convolutions")
    module.train()
    module.bn.eval()
    export_pt2(module, inputs(2), tmp_path / "net.pt2")
    assert module.training
    assert not module.bn.training


def test_fixed_batch(tmp_path: Path) -> None:
    module, inputs = generated("words")
    export_pt2(module, inputs(3), tmp_path / "net.pt2", dynamic_batch=False)
    export_onnx(module, inputs(3), tmp_path / "net.onnx", dynamic_batch=False, opset=18)
    given = inputs(3)
    same_outputs(run_onnx(tmp_path / "net.onnx", given), [*module(*given)], 1e-4, 1e-3)
    with pytest.raises(UserError, match="does not run on inputs of shape"):
        run_onnx(tmp_path / "net.onnx", inputs(2))


def test_a_batch_that_cannot_vary_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 12) + 1

    with pytest.raises(UserError, match="dynamic_batch=False"):
        export_pt2(Fixed(), torch.randn(4, 6), tmp_path / "net.pt2")
    with pytest.raises(UserError, match="common first dimension"):
        export_pt2(Fixed(), torch.tensor(1.0), tmp_path / "net.pt2")
    assert os.listdir(tmp_path) == []


class Siamese(nn.Module):
    """Two inputs through one layer, stacked along the batch and taken apart again: torch notes that
    the sum of the two batches is no odd number, as for its own tracing a batch of one is
    special."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = self.layer(torch.cat([x, y])).chunk(2, dim=0)
        return left.relu() - right


def test_a_note_about_a_batch_of_one_refuses_no_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Siamese()
    export_onnx(module, (torch.randn(1, 6), torch.randn(1, 6)), tmp_path / "net.onnx")
    for rows in (1, 2, 5):
        given = torch.randn(rows, 6), torch.randn(rows, 6)
        with torch.no_grad():
            same_outputs(run_onnx(tmp_path / "net.onnx", given), [module(*given)], 1e-5, 1e-5)


class Windows(nn.Module):
    """Attention with a bias over the places of windows, whose result is laid out as an image
    again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(16, 48), nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        q, k, v = (
            self.qkv(x.reshape(rows * 4, 16, 16))
            .view(rows * 4, 16, 2, 24)
            .transpose(1, 2)
            .chunk(3, dim=3)
        )
        bias = self.bias.unsqueeze(0).contiguous()
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return seen.transpose(1, 2).reshape(rows * 4, 4, 4, -1)


def test_a_view_of_an_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Windows()
    export_onnx(module, torch.randn(2, 4, 16, 16), tmp_path / "net.onnx")
    given = torch.randn(3, 4, 16, 16)
    with torch.no_grad():
        same_outputs(run_onnx(tmp_path / "net.onnx", [given]), [module(given)], 1e-5, 1e-5)


class Ranks(nn.Module):
    """Attention over three axes, with a mask, and over five."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = nn.functional.scaled_dot_product_attention
        three = attention(x, x.cos(), x.sin(), attn_mask=(x @ x.transpose(1, 2)).tanh())
        five = x.view(-1, 2, 3, 2, 8)
        return three, attention(five, five.sin(), five.cos(), scale=0.5)


def test_attention_over_other_axes_than_four(tmp_path: Path) -> None:
    export_onnx(Ranks(), torch.randn(2, 12, 8), tmp_path / "net.onnx")
    for rows in (1, 3):
        given = torch.randn(rows, 12, 8)
        same_outputs(run_onnx(tmp_path / "net.onnx", [given]), list(Ranks()(given)), 1e-5, 1e-5)


def test_zeros_in_front_of_a_max_pooling_stay_zeros(tmp_path: Path) -> None:
    """onnxruntime would pad with minus infinity instead."""

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.pad(x, (1, 1, 1, 1))
            return nn.functional.max_pool2d(x, 3, 2) + nn.functional.avg_pool2d(x, 3, 2)

    given = -1 - torch.rand(2, 3, 8, 8)
    export_onnx(Padded(), given, tmp_path / "net.onnx")
    same_outputs(run_onnx(tmp_path / "net.onnx", [given]), [Padded()(given)], 1e-6, 1e-6)


def test_an_op_without_translation_is_named(tmp_path: Path) -> None:
    class Untranslatable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(
        UserError, match=r"ONNX cannot express this network: the op \w+\.\w*bessel_j0"
    ):
        export_onnx(Untranslatable(), torch.randn(2, 3), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SINGLE_FILE_LIMIT", 100)
    module, inputs = generated("words")
    export_onnx(module, inputs(2), tmp_path / "net.onnx")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    check_onnx(module, inputs, tmp_path / "net.onnx")


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    module, inputs = generated("words")
    with pytest.raises(UserError, match=r"missing.net\.pt2: No such file"):
        export_pt2(module, inputs(2), tmp_path / "missing" / "net.pt2")
    with pytest.raises(UserError, match=r"net\.bin must end in \.onnx"):
        export_onnx(module, inputs(2), tmp_path / "net.bin")
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"bad\.onnx cannot be loaded"):
        run_onnx(tmp_path / "bad.onnx", inputs(2))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})

    def stop_midway() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        stop_midway()
    assert path.read_text() == '{\n  "a": 1\n}\n'

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(UserError, match=r"cannot write .*file\.json: No space left"),
        files.atomic_path(path),
    ):
        full()
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "shufflenet_v2_x1_0",
        "efficientnet_b0",
        "densenet121",
        "vit_b_16",
        "swin_t",
        "convnext_tiny",
    ],
)
def test_torchvision(name: str, tmp_path: Path) -> None:
    import torchvision

    size = 224 if name in ("vit_b_16", "swin_t") else 64

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, size, size),)

    torch.manual_seed(0)
    graph = capture(getattr(torchvision.models, name)(weights=None), inputs(2))
    module = build_module(graph, graph.weights)
    export_pt2(module, inputs(1), tmp_path / "net.pt2")
    check_pt2(module, inputs, tmp_path / "net.pt2")
    export_onnx(module, inputs(1), tmp_path / "net.onnx")
    check_onnx(module, inputs, tmp_path / "net.onnx", 1e-3)
