"""The frozen values of the IR: dimensions, tensor types, attribute words and locations.

A dimension is a number, an expression in the batch size ``N``, or an axis of channels that carries
the names of its channel groups: whatever shares a name is cut together.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DEVICE",
    "MODE",
    "Attr",
    "Axis",
    "BatchSize",
    "ChannelDim",
    "ChannelGroup",
    "Dim",
    "IndexedAxis",
    "Keyword",
    "Location",
    "Part",
    "SplitAxis",
    "TensorType",
    "dim_size",
    "ranges_of",
]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """A size that depends on the batch size ``N``: ``(scale * N + offset) // divisor``."""

    scale: int = 1
    offset: int = 0
    divisor: int = 1

    def at(self, batch: int) -> int:
        """Return the size at a batch size."""
        return (self.scale * batch + self.offset) // self.divisor

    def __str__(self) -> str:
        text = "N" if self.scale == 1 else f"N*{self.scale}"
        if self.offset:
            text += f"{self.offset:+d}"
        return f"({text})/{self.divisor}" if self.divisor != 1 else text


@dataclass(frozen=True, slots=True)
class Part:
    """A run of ``count`` consecutive units of ``group`` from ``start``.

    Each owns ``repeat`` neighbouring channels.

    A part without a group is a run of ``count`` channels that belong to no parameter (always
    there).
    """

    group: str | None
    count: int
    start: int = 0
    repeat: int = 1

    @property
    def size(self) -> int:
        return self.count * self.repeat


@dataclass(frozen=True, slots=True)
class Axis:
    """A channel axis in closed form: its parts one after another (``$a ++ $b * 49``)."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.group for part in self.parts if part.group is not None))


@dataclass(frozen=True, slots=True)
class SplitAxis:
    """The inner axis of a view that splits a group into equal blocks (heads): ``$a / 12``."""

    group: str
    divisor: int
    size: int

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.group,)


@dataclass(frozen=True, slots=True)
class IndexedAxis:
    """A channel axis whose order has no closed form (a shuffle).

    ``digest`` is one of the order.
    """

    size: int
    groups: tuple[str, ...]
    digest: str


ChannelDim = Axis | SplitAxis | IndexedAxis
Dim = int | BatchSize | Axis | SplitAxis | IndexedAxis


def dim_size(dim: Dim, batch: int = 1) -> int:
    """Return the number of elements along a dimension, at a batch size."""
    if isinstance(dim, int):
        return dim
    return dim.at(batch) if isinstance(dim, BatchSize) else dim.size


@dataclass(frozen=True, slots=True)
class TensorType:
    """The dtype (``f32``, ``i64``, ...) and the dimensions of a value."""

    dtype: str
    dims: tuple[Dim, ...]

    def shape(self, batch: int = 1) -> tuple[int, ...]:
        """Return the shape at a batch size."""
        return tuple([dim if type(dim) is int else dim_size(dim, batch) for dim in self.dims])

    @property
    def rank(self) -> int:
        return len(self.dims)

    def plain(self) -> TensorType:
        """Return the same type with the names of channel groups replaced by their sizes."""
        return TensorType(
            self.dtype, tuple(d if isinstance(d, BatchSize) else dim_size(d) for d in self.dims)
        )


@dataclass(frozen=True, slots=True)
class Keyword:
    """A bare word as an attribute value: a dtype, a memory format, `MODE` or `DEVICE`."""

    name: str

    def __str__(self) -> str:
        return self.name


MODE = Keyword("mode")
"""The value of a `training` flag that follows the executor's mode (batch norm, dropout)."""

DEVICE = Keyword("device")
"""The device the executor runs on."""

Attr = None | bool | int | float | str | BatchSize | Keyword | tuple["Attr", ...]


@dataclass(frozen=True, slots=True)
class Location:
    """The origin of an op: the module's qualified name and class, and the user's source line."""

    module: str = ""
    module_type: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ""
        return " at ".join(filter(None, (self.module, where))) or "unknown location"


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """A declared channel group: its units, what its kept set must obey, and what is kept.

    ``blocks`` equal blocks must keep the same number of units each. ``keep`` lists half-open ranges
    of kept units, or is None while nothing was decided.
    """

    name: str
    width: int
    frozen: str | None = None
    blocks: int = 1
    keep: tuple[tuple[int, int], ...] | None = None

    @property
    def kept(self) -> int:
        return self.width if self.keep is None else sum(stop - start for start, stop in self.keep)


def ranges_of(indices: list[int]) -> tuple[tuple[int, int], ...]:
    """Return sorted indices as half-open ranges: ``[0, 1, 2, 5] -> ((0, 3), (5, 6))``."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)
