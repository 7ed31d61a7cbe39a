"""The networks that several tests share; a network of one test stands beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pruneopt.models.source import load_model
from pruneopt.models.zoo import create, entry, names


def zoo(name: str) -> nn.Module:
    """Return a network of the model zoo, with the weights that its seed gives."""
    module = load_model(f"zoo:{name}").module
    assert isinstance(module, nn.Module)
    return module.eval()


def published(name: str, classes: int = 1000) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of the model zoo or of torchvision by its name, with random weights and in
    evaluation mode, and the shape of its input."""
    if name in names():
        return create(name, num_classes=classes).eval(), entry(name).input_shape
    return torchvision.models.get_model(name, weights=None).eval(), (1, 3, 224, 224)


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function of them: ``forward(net, *inputs)``.

    A tensor becomes a parameter, unless it is an `nn.Buffer`.
    """

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, nn.Buffer):
                self.register_buffer(name, part)
            else:
                setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(self, *inputs)


def later(forward: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], Net]:
    """Return a factory of a `Net`, so that a table of networks makes no weights."""
    return lambda: Net(forward, **{name: make() for name, make in parts.items()})


def conv(ins: int, outs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the size of images."""
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **options)


class Noisy(nn.Module):
    """Adds other random numbers in every run."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Double(torch.autograd.Function):
    """A function of one's own for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


def tiny_vit() -> nn.Module:
    """Return a vision transformer of two blocks for images of 32 x 32."""
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )
