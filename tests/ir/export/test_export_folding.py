"""Exported files as onnxruntime loads them: no batch norm is left to compute, and nothing that
could be folded."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.export.export import export_onnx

NEWEST = 23
"""The newest opset that PyTorch 2.11 to 2.15 translates to."""


def optimised(path: Path) -> onnx.ModelProto:
    """The graph that onnxruntime runs, before it lays data out for this machine's processor."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("optimised.onnx"))


def foldable(model: onnx.ModelProto) -> list[str]:
    """Nodes all of whose inputs are known beforehand."""
    known = {item.name for item in model.graph.initializer} | {""}
    found = []
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and set(node.input) <= known):
            found.append(node.op_type)
            known |= set(node.output)
    return found


class Layers(nn.Module):
    """Batch norms behind convolutions of every kind and a linear layer, and arithmetic on weights
    alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.up, self.norm3 = nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6)
        self.head, self.norm4 = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm2(self.depthwise(x)))
        x = self.norm3(self.up(x)).mean((2, 3))
        return self.norm4(self.head(x)) * (self.scale.exp() + torch.arange(5)).reshape(1, 5)


def lively(module: nn.Module) -> nn.Module:
    """Statistics and scales that are not those of a fresh batch norm."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    return module.eval()


def written(module: nn.Module, x: Tensor, path: Path) -> tuple[nn.Module, Path]:
    """Return a network as compile delivers it: its generated module, and that as ONNX."""
    graph = capture(module, (x,))
    made = build_module(graph, graph.weights)
    export_onnx(made, x, path)
    return made, path


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    return written(
        lively(Layers()), torch.randn(2, 3, 9, 9), tmp_path_factory.mktemp("onnx") / "layers.onnx"
    )


def test_norms_and_constants_are_folded(layers: tuple[nn.Module, Path]) -> None:
    model = optimised(layers[1])
    assert foldable(model) == []
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["BatchNormalization"] == 0
    assert counts["Exp"] == 0
    assert counts["Conv"] + counts["FusedConv"] == 2


def test_the_check_sees_what_is_not_folded() -> None:
    """A constant, what follows from it, and nothing that reads an input."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> {
        a = Exp(w)  b = Neg(a)  c = Add(x, b)  y = Mul(c, w)
    }"""
    assert foldable(onnx.parser.parse_model(text)) == ["Exp", "Neg"]


def test_every_batch_size_gives_what_the_network_gives(layers: tuple[nn.Module, Path]) -> None:
    module, path = layers
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 9, 9]
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 9, 9)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            wanted = module.double()(x.double()).numpy()
        module.float()
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_files_pass_the_full_check(layers: tuple[nn.Module, Path]) -> None:
    """Types and shapes of all values too."""
    onnx.checker.check_model(str(layers[1]), full_check=True)


@pytest.mark.parametrize("opset", [18, NEWEST])
def test_opsets(layers: tuple[nn.Module, Path], tmp_path: Path, opset: int) -> None:
    path = tmp_path / "m.onnx"
    x = torch.randn(2, 3, 9, 9)
    export_onnx(layers[0], x, path, opset=opset)
    assert [item.version for item in onnx.load(path).opset_import if not item.domain] == [opset]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, layers[0](x).numpy(), atol=1e-5)


def test_the_opset_is_pytorchs_current_one(layers: tuple[nn.Module, Path]) -> None:
    (version,) = [item.version for item in onnx.load(layers[1]).opset_import if not item.domain]
    assert 18 <= version <= NEWEST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("efficientnet_b0", 0),
        ("vgg11_bn", 0),
        ("densenet121", 58 + 3 + 1),
    ],
)
def test_networks_of_torchvision(name: str, left: int, tmp_path: Path) -> None:
    """DenseNet normalises what it concatenates, in front of its 58 layers, its 3 transitions and
    its head: those norms have no layer to go into.
    """
    import torchvision

    torch.manual_seed(0)
    module = lively(getattr(torchvision.models, name)(weights=None))
    _, path = written(module, torch.randn(2, 3, 64, 64), tmp_path / "m.onnx")
    model = optimised(path)
    counts = Counter(node.op_type for node in model.graph.node)
    assert foldable(model) == []
    assert counts["BatchNormalization"] == left
