"""Networks whose generated source is compared with them: layers, ties, structures of outputs, what
training changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8, momentum=0.3, eps=1e-3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn(self.conv(x)))
        x = F.max_pool2d(x, 2).mean(dim=(2, 3))
        return self.head(x)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=(1, 0)),
            nn.Hardswish(),
            nn.Conv2d(8, 8, 3, groups=8, padding="same", dilation=2, bias=False),
            nn.BatchNorm2d(8, affine=False),
            nn.GELU(approximate="tanh"),
            nn.AdaptiveAvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(16, 3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class ScaledDotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class ConcatSplitShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, dim=1)
        x = torch.cat([left, self.b(x), right], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        first, _, last = x.split([2, 6, 4], dim=1)
        return torch.stack([first[:, :, 1:], last[:, 1:3, :-1]], dim=-1) + x[:, 0:2, ::2].mean()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.same = self.layer
        self.many = nn.ModuleList([nn.Linear(6, 6)] * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.layer(x)))
        x = self.norm(torch.sigmoid(self.same(x)))
        for layer in self.many:
            x = layer(x)
        return x


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.words(x))


class TiedWhole(nn.Module):
    """An embedding and a linear layer share all they have, and are still two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.decoder = nn.Linear(8, 11, bias=False)
        self.decoder.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.words(x))


class RawParameters(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.list = nn.ParameterList([torch.randn(6), torch.randn(6)])
        self.dict = nn.ParameterDict({"class": torch.randn(6), "a-b": torch.randn(6)})
        self.odd = nn.ModuleDict({"if": nn.Linear(6, 6), "x y": nn.Linear(6, 6)})
        self.register_buffer("shift", torch.arange(6.0))
        self.register_buffer(
            "mask", torch.tensor([True, False, True, True, False, True]), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) @ self.weight
        x = x * self.list[0] + self.list[1] - self.dict["class"] / (self.dict["a-b"].abs() + 1)
        x = self.odd["x y"](self.odd["if"](x)) + self.shift
        return x.masked_fill(self.mask, -1.0) ** 2 + torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.conv(x)
        return {"out": y, "more": [y.amax((2, 3)), (y.flatten(1), x)], "a'b": (y.sum(),)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, input: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.where(input.sum(1, keepdim=True) > 0, self.a(input), self.b(other))
        return x, 1 - 2 ** -x.clamp(max=1.5)


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.drop, self.drop2d = nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop2d(self.conv(x)).mean((2, 3))
        return self.fc(F.dropout(self.drop(torch.flatten(x, 1)), 0.2, self.training))


class Cumulative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2)
        self.odd = nn.BatchNorm1d(2, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.bn(x))
        # Two settings of one layer: it cannot be declared, batch norm is called as a function.
        odd = self.odd
        return odd(x) + F.batch_norm(
            x, odd.running_mean, odd.running_var, odd.weight, odd.bias, eps=0.1
        )


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.up1 = nn.ConvTranspose1d(6, 4, 2, bias=False)
        self.prelu, self.norm = nn.PReLU(6), nn.InstanceNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.prelu(self.up(x)))
        return self.up1(x.flatten(2)) * -1.0


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1, padding_mode="circular")
        self.group, self.batch = nn.GroupNorm(2, 8), nn.BatchNorm1d(8, track_running_stats=False)
        self.layer, self.plain = (
            nn.LayerNorm([8, 10], bias=False),
            nn.LayerNorm(10, elementwise_affine=False),
        )
        self.rms = nn.RMSNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.rms(self.plain(self.layer(self.batch(F.silu(self.group(self.conv(x)))))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 2, 3, 3)), nn.Parameter(torch.randn(6))
        self.mix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1, groups=2)
        x = torch.einsum("nchw,cd->ndhw", x, self.mix)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.interpolate(x, size=(5, 7), mode="nearest")
        x = F.pixel_unshuffle(F.pad(x, (0, 1, 1, 0), mode="reflect"), 2).contiguous()
        return x.view(x.shape[0], -1)


class Scaled(nn.Module):
    """Tokens of a batch folded into the batch dimension, as windowed attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = self.fc(x.reshape(n * 3, 2, 4)) + torch.arange(4, device=x.device).to(x.dtype)
        return torch.softmax(y.view(n, 3, 2, 4).transpose(1, 2), dim=-1) + torch.zeros(n, 1, 1, 1)


Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...]]
torch.manual_seed(7)
CASES: dict[str, Case] = {
    "residual": (Residual, (torch.randn(4, 3, 8, 8),)),
    "grouped": (Grouped, (torch.randn(4, 4, 9, 9),)),
    "attention": (Attention, (torch.randn(3, 5, 16),)),
    "scaled_dot_product": (ScaledDotProduct, (torch.randn(3, 5, 16),)),
    "concat_split_shuffle": (ConcatSplitShuffle, (torch.randn(3, 4, 6, 6),)),
    "shared": (Shared, (torch.randn(5, 6),)),
    "tied": (Tied, (torch.randint(0, 11, (3, 4)),)),
    "tied_whole": (TiedWhole, (torch.randint(0, 11, (3, 4)),)),
    "raw_parameters": (RawParameters, (torch.randn(3, 4, 6),)),
    "dict_output": (DictOutput, (torch.randn(2, 3, 6, 6),)),
    "two_inputs": (TwoInputs, (torch.randn(4, 4), torch.randn(4, 3))),
    "dropout": (Dropout, (torch.randn(4, 3, 6, 6),)),
    "transposed": (Transposed, (torch.randn(2, 4, 5, 5),)),
    "norms": (Norms, (torch.randn(3, 3, 10),)),
    "functional": (Functional, (torch.randn(2, 4, 6, 6),)),
    "scaled": (Scaled, (torch.randn(3, 6, 4),)),
}


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, inputs = CASES[name]
    torch.manual_seed(3)
    model = make()
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model, inputs
