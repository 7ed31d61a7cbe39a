"""Which channel counts the hardware likes, and which of its multiples suits a group.

A *target* is a device with a data type. Where its multiples come from:

- NVIDIA GPUs read memory in vectors of 16 bytes, and kernels for tensor cores need channel counts
  that keep rows aligned to them: 8 channels in fp16 or bf16, 4 in tf32 (what PyTorch makes of
  float32 convolutions), 16 in int8. Otherwise libraries pad, or fall back to slower kernels. Tiles
  of matrix products are 16 to 64 channels and more wide: a wide layer that ends inside a tile
  computes the whole tile.
- oneDNN, which runs convolutions on CPUs, blocks channels by the width of a vector: 8 floats with
  AVX2, 16 with AVX-512. A layer of any other width is padded to whole blocks.

A narrow group takes a smaller multiple than a wide one, or it would have nothing to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pruneopt.ir.graph import Graph

__all__ = ["TARGETS", "Alignment", "RoundTo", "alignment_of"]

RoundTo = (
    int
    | Literal[
        "auto",
        "auto:cuda-fp16",
        "auto:cuda-bf16",
        "auto:cuda-tf32",
        "auto:cuda-int8",
        "auto:cpu-avx2",
        "auto:cpu-avx512",
    ]
)
"""What an option ``round-to`` may be: a multiple, ``auto``, or ``auto:`` and the name of a
target."""
CHOICES = 4
"""A group gets the largest multiple of which it holds at least this many."""


@dataclass(frozen=True)
class Alignment:
    """Widths that a target likes.

    Attributes:
        target: its name.
        multiples: of channels, ascending; each divides the next.
        reason: why, in a few words.
    """

    target: str
    multiples: tuple[int, ...]
    reason: str

    def multiple(self, channels: int) -> int:
        """Return the multiple for a group with so many channels.

        The largest of which the group holds `CHOICES`, else the smallest. A group that does not
        hold two of the smallest takes half of it, and half again, so that it need not stay whole.
        """
        found = self.multiples[0]
        while found > 1 and channels < 2 * found:
            found //= 2
        return max([m for m in self.multiples if channels >= CHOICES * m], default=found)

    def reached(self, channels: int) -> int:
        """Return the largest liked multiple, or smaller power of two, that divides a count."""
        below = [1 << power for power in range(self.multiples[0].bit_length() - 1)]
        return max(m for m in (1, *below, *self.multiples) if channels % m == 0)

    def finest(self) -> Alignment:
        """Return the same target with its smallest multiple alone."""
        return replace(self, multiples=self.multiples[:1])


HALF = "tensor cores take rows of 16 bytes"
TARGETS = {
    found.target: found
    for found in (
        Alignment("cuda-fp16", (8, 16, 32, 64), HALF),
        Alignment("cuda-bf16", (8, 16, 32, 64), HALF),
        Alignment("cuda-tf32", (4, 8, 16, 32, 64), HALF),
        Alignment("cuda-int8", (16, 32, 64, 128), HALF),
        Alignment("cpu-avx2", (8, 16), "oneDNN blocks channels by 8"),
        Alignment("cpu-avx512", (16, 32), "oneDNN blocks channels by 16"),
    )
}
"""The targets that can be named."""
CUDA = {"f32": "cuda-tf32", "f16": "cuda-fp16", "bf16": "cuda-bf16", "f64": "cuda-tf32"}


def alignment_of(round_to: RoundTo, graph: Graph, device: str) -> int | Alignment:
    """Return what a ``round-to`` means for a network: the number, or what its target likes.

    ``auto`` alone is the device that the run works on, with the data type of the network's weights.
    """
    if not isinstance(round_to, str):
        return round_to
    _, _, target = round_to.partition(":")
    return TARGETS[target or _own_target(graph, device)]


def _own_target(graph: Graph, device: str) -> str:
    if device.startswith("cuda"):
        used = [value.type.dtype for value in graph.params.values() if value.type.dtype in CUDA]
        return CUDA[max(set(used), key=used.count)] if used else "cuda-tf32"
    import torch

    return "cpu-avx512" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "cpu-avx2"
