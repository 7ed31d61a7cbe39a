"""Flat buffers whose gaps are NaN: what reads outside its part becomes NaN, what writes outside is
seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruneopt.kernels.segments import padded
from pruneopt.kernels.tiles import Precision

GAP = 16
NAN = float("nan")


@dataclass
class Buffer:
    """Parts one after another, each followed by a gap."""

    parts: list[Tensor] = field(default_factory=list)
    size: int = 0

    def add(self, part: Tensor) -> int:
        """Append a part; where it begins."""
        start = self.size
        flat = part.flatten().double()
        gap = -len(flat) % GAP + GAP
        self.parts += [flat, torch.full((gap,), NAN, dtype=torch.float64)]
        self.size += len(flat) + gap
        return start

    def reserve(self, count: int) -> int:
        """Append a part that is still to be written, NaN until then."""
        return self.add(torch.full((count,), NAN))

    def tensor(self, dtype: torch.dtype, device: str) -> Tensor:
        return torch.cat(self.parts).to(dtype).to(device)


@dataclass(frozen=True)
class Setting:
    """In which numbers a kernel computes, and how far it may be from float64 (relative, see
    `close`)."""

    name: str
    dtype: torch.dtype
    precision: Precision
    value: float
    mean: float
    variance: float

    @property
    def interpretable(self) -> bool:
        """The interpreter computes tf32 in full float32, and bfloat16 wrongly."""
        return self.name in ("fp32", "fp16")


FP32 = Setting("fp32", torch.float32, "ieee", 2e-6, 1e-6, 2e-6)
FAR = Setting("fp32", torch.float32, "ieee", 2e-6, 1e-3, 5e-4)
"""Float32 where the mean is a thousand times the deviation."""
TF32 = Setting("tf32", torch.float32, "tf32", 2e-3, 5e-4, 2e-3)
FP16 = Setting("fp16", torch.float16, "ieee", 1e-3, 3e-4, 1e-3)
BF16 = Setting("bf16", torch.bfloat16, "ieee", 8e-3, 2e-3, 4e-3)
SETTINGS = (FP32, TF32, FP16, BF16)


def channels_last(
    shape: tuple[int, ...], n: int, generator: torch.Generator, mean: float = 0.0
) -> Tensor:
    """Random values `[..., padded(n)]` whose pads are zero."""
    made = torch.zeros(*shape, padded(n), dtype=torch.float64)
    made[..., :n] = torch.randn(*shape, n, generator=generator, dtype=torch.float64) + mean
    return made


def table(n: int, generator: torch.Generator, around: float) -> Tensor:
    """A per-channel table `[padded(n)]` whose pads are zero."""
    return channels_last((), n, generator) * 0.3 + torch.cat(
        [torch.full((n,), around), torch.zeros(padded(n) - n)]
    )


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal gaps, and a largest difference below `tolerance` times the largest expected value."""
    found, expected = found.double().cpu(), expected.double().cpu()
    assert torch.equal(found.isnan(), expected.isnan()), (
        f"{what}: other elements are written than expected"
    )
    error = (found - expected).nan_to_num().abs().max()
    scale = expected.nan_to_num().abs().max()
    assert error <= tolerance * scale, (
        f"{what}: off by {error / scale:.2e}, allowed {tolerance:.0e}"
    )
