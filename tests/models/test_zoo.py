"""The zoo's networks have the sizes that published numbers depend on."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pruneopt.errors import UserError
from pruneopt.models import zoo


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def macs(name: str, **options: object) -> float:
    """Convolution and linear multiply-accumulates at batch 1, in millions."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        zoo.create(name, **options).eval()(torch.empty(zoo.entry(name).input_shape))
    return float(counter.get_total_flops()) / 2e6


def metapruning_flops(name: str) -> float:
    """MetaPruning's formula, in millions: conv, linear and bias, BN and ReLU *module* inputs, k*k
    per pooled value."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() + module.bias.numel()
        elif isinstance(module, nn.AvgPool2d):
            total += output.numel() * 49
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.ReLU6):
            total += inputs[0].numel()

    with torch.device("meta"), torch.inference_mode():
        module = zoo.create(name).eval()
        for part in module.modules():
            part.register_forward_hook(count)
        module(torch.empty(zoo.entry(name).input_shape))
    return total / 1e6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("vgg19_cifar", 20_035_018),
        ("mobilenet_v1", 4_231_976),
        ("repvgg_a0", 9_108_968),
        ("digits_resnet", 174_970),
    ],
)
def test_parameter_count(name: str, expected: int) -> None:
    assert parameters(zoo.create(name)) == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet56", {}, 125.49),
        ("vgg19_cifar", {"num_classes": 100}, 398.18),
        ("mobilenet_v1", {}, 568.74),
        ("mobilenet_v2_1_4", {}, 568.24 + 1.28),  # published without the classifier
        ("mobilenet_v1", {"width": 0.75}, 324.63 + 0.768),
        ("mobilenet_v1", {"width": 0.5}, 148.99 + 0.512),
        ("mobilenet_v1", {"width": 0.25}, 40.77 + 0.256),
    ],
)
def test_macs(name: str, options: dict[str, object], expected: float) -> None:
    assert macs(name, **options) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("name", "expected"), [("mobilenet_v1", 573.83), ("mobilenet_v2_1_4", 579.30)]
)
def test_metapruning_formula(name: str, expected: float) -> None:
    assert metapruning_flops(name) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("name", zoo.names())
def test_options_reach_the_network(name: str) -> None:
    module = zoo.create(name, num_classes=7, width=0.5).eval()
    assert parameters(module) < parameters(zoo.create(name))
    shape = zoo.entry(name).input_shape
    with torch.inference_mode():
        assert module(torch.randn(shape)).shape == (1, 7)


def test_repvgg_has_timm_layout() -> None:
    timm = pytest.importorskip("timm")
    peer = timm.create_model("repvgg_a0", pretrained=False)
    assert parameters(peer) == parameters(zoo.create("repvgg_a0"))


def test_odd_width_keeps_the_shortcut() -> None:
    module = zoo.create("resnet20", width=0.7).eval()
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet21", {}, "did you mean .*resnet20"),
        ("resnet20", {"widht": 2}, "no option 'widht': did you mean width"),
        ("resnet20", {"width": 0.01}, "without channels"),
        ("resnet20", {"num_classes": "many"}, "cannot be built"),
    ],
)
def test_errors(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        zoo.create(name, **options)
