"""What the machine at hand reaches: bytes copied and products multiplied per second."""

from __future__ import annotations

from functools import partial

import torch
from gpu_counts import Ceilings
from gpu_device import Device, interleaved
from gpu_guard import Row
from gpu_networks import Sizes

__all__ = ["ceilings_of", "ceilings_part"]


def ceilings_part(device: Device, sizes: Sizes, row: Row) -> None:
    """Measure a copy of a large buffer, read and written, and square products of random
    matrices."""
    row["copy"] = _copy(device, sizes)
    side = sizes.matrix
    factors = {
        name: [torch.randn(side, side, device=device.place, dtype=dtype) for _ in range(2)]
        for name, dtype in (
            ("bf16", torch.bfloat16),
            ("fp16", torch.float16),
            ("tf32", torch.float32),
        )
    }
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        runs = {name: partial(torch.mm, *pair) for name, pair in factors.items()}
        times = interleaved(device, runs, sizes.warmups, sizes.repeats)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for name, found in times.items():
        row[name] = found
        if "ms" in found:
            row[name]["operations_per_s"] = 2e3 * side**3 / found["ms"]
    row["clocks after"] = device.clocks()


def _copy(device: Device, sizes: Sizes) -> Row:
    source = torch.randint(0, 256, (sizes.copy,), dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    found = interleaved(
        device, {"copy": lambda: target.copy_(source)}, sizes.warmups, sizes.repeats
    )["copy"]
    return {**found, "bytes": 2 * sizes.copy, "bytes_per_s": 2e3 * sizes.copy / found["ms"]}


def ceilings_of(row: Row | None) -> Ceilings | None:
    """Return the ceilings of 16-bit work in a row that `ceilings_part` filled."""
    if (
        row is None
        or "bytes_per_s" not in row.get("copy", {})
        or "operations_per_s" not in row.get("bf16", {})
    ):
        return None
    return Ceilings(row["copy"]["bytes_per_s"], row["bf16"]["operations_per_s"])
