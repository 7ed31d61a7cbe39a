"""The segment table: which parts of which buffers one launch works on.

A segment is one candidate on one batch. All segments of a launch share the kernel, the window and
the buffers; they differ in widths, in the number of images, and in where in the buffers they lie.
So candidates of different widths, and all batches of a candidate, go through one launch.

Offsets count elements. Bases are 64 bits; inside a segment the kernels count in 32 bits, which
`Segments` checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pruneopt.errors import UserError

__all__ = ["ALIGNMENT", "COLUMNS", "LIMIT", "Pool", "Pools", "Segment", "Segments", "padded"]

ALIGNMENT = 16
"""Channels are stored in multiples of this, and offsets are multiples of it, so that every copy is
16 bytes wide."""

LIMIT = 2**31
"""Elements that offsets of 32 bits reach."""


def padded(width: int) -> int:
    """Return the stored number of channels for a width: the next multiple of `ALIGNMENT`."""
    return -(-width // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One candidate on one batch. Kernels use the fields they need; the order is that of the
    table's columns.

    Attributes:
        x: where the input `[images, height, width, padded(n_in)]` begins.
        w: where the weight `[taps, w_rows, w_columns]` begins.
        y: where the output `[images, height, width, padded(n_out)]` begins.
        in_table: where the input's scale and shift begin, `[padded(n_in)]`.
        partials: where the partial statistics begin, `[tiles, padded(n_out)]`.
        out_table: where per-channel results begin, `[padded(n_out)]`; for `score` per-image
            results.
        params: where gamma, beta or bias begin; only the first `n_out` are read.
        residual: where what is added begins; shaped as what it is added to.
        residual_table: where scale and shift of the residual begin.
        materialised: where the finished input, shaped as the input, is written.
        image: the first image of the segment in its data set, for pictures, labels and teachers.
        n_in: channels of the input.
        n_out: channels of the output.
        w_columns: columns of the stored weight; more than `padded(n_out)` where the candidate is a
            prefix of it.
        w_rows: rows per tap of the stored weight; more than `padded(n_in)` where the candidate is a
            prefix of it.
        images: how many images.

    Raises:
        UserError: a negative or unaligned offset, an empty width, or a weight narrower than the
            candidate.
    """

    x: int = 0
    w: int = 0
    y: int = 0
    in_table: int = 0
    partials: int = 0
    out_table: int = 0
    params: int = 0
    residual: int = 0
    residual_table: int = 0
    materialised: int = 0
    image: int = 0
    n_in: int
    n_out: int
    w_columns: int = 0
    w_rows: int = 0
    images: int

    def __post_init__(self) -> None:
        if min(self.n_in, self.n_out, self.images) < 1:
            raise UserError(
                f"a segment of {self.images} images from {self.n_in} to {self.n_out} channels is "
                "empty: "
                "use 1 or more of each"
            )
        for name in _OFFSETS:
            offset: int = getattr(self, name)
            if offset < 0 or offset % ALIGNMENT:
                raise UserError(
                    f"offset {name}={offset} of a segment must be a multiple of {ALIGNMENT}, and "
                    "not negative"
                )
        if self.image < 0:
            raise UserError(f"image={self.image} of a segment must not be negative")
        for name, width in (("w_columns", self.n_out), ("w_rows", self.n_in)):
            stored: int = getattr(self, name)
            if stored == 0:
                object.__setattr__(self, name, padded(width))
            elif stored % ALIGNMENT and not (name == "w_rows" and stored == 1):
                raise UserError(f"{name}={stored} of a segment must be a multiple of {ALIGNMENT}")


_NAMES = tuple(field.name for field in fields(Segment))
_OFFSETS = _NAMES[: _NAMES.index("image")]
COLUMNS = {name: number for number, name in enumerate(_NAMES)}
"""Where each field of a segment stands in a row of the table."""


class Segments:
    """The table of a launch, on the device and, for checking, on the host.

    Kernels read the table on the device alone. Whoever gives its memory may write other, smaller
    widths and fewer images there later: a launch that was made for these segments then works on
    others, and its programs that have nothing to do end at once. With no images a segment has no
    work at all.

    Args:
        segments: the rows.
        device: of the table.
        table: memory for it, int64 `[segments, 16]`, contiguous; None makes some on ``device``.

    Attributes:
        table: int64 `[segments, 16]` on the device, one column per field of `Segment`.
        host: the same on the host.

    Raises:
        UserError: no segments, or more than a launch's grid can hold.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        device: torch.device | str = "cpu",
        table: Tensor | None = None,
    ) -> None:
        if not 0 < len(segments) < 65536:
            raise UserError(f"a launch takes 1 to 65535 segments, not {len(segments)}")
        rows = [[getattr(segment, name) for name in _NAMES] for segment in segments]
        self.segments = tuple(segments)
        self.host = torch.tensor(rows, dtype=torch.int64)
        self.table = self.host.to(device) if table is None else table.copy_(self.host)
        self._columns = dict(zip(_NAMES, self.host.unbind(1), strict=True))
        self._widths = {
            name: (self._columns[name] + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
            for name in ("n_in", "n_out")
        }

    @classmethod
    def read(cls, table: Tensor) -> Segments:
        """Return the segments that have work, of a table as it stands now on its device."""
        rows: list[list[int]] = table.tolist()
        return cls(
            [
                Segment(**dict(zip(_NAMES, row, strict=True)))
                for row in rows
                if row[COLUMNS["images"]]
            ]
        )

    def __len__(self) -> int:
        return len(self.segments)

    def column(self, name: str) -> Tensor:
        """Return one field of every segment, int64 `[segments]` on the host."""
        return self._columns[name]

    def width(self, name: str) -> Tensor:
        """`n_in` or `n_out` of every segment as stored: padded, int64 `[segments]` on the host."""
        return self._widths[name]

    def largest(self, name: str) -> int:
        """Return the largest value of a field."""
        return int(self.column(name).max())

    def check(self, name: str, buffer: Tensor, start: Tensor, size: Tensor) -> None:
        """Check that every segment's part of a buffer lies inside it, within 32-bit offsets.

        Args:
            name: what the buffer is, for the message.
            buffer: any contiguous tensor.
            start: first element of each segment, `[segments]`.
            size: elements of each segment, `[segments]`.

        Raises:
            UserError: the first segment that does not fit.
        """
        end = start + size
        if int(size.max()) < LIMIT and int(end.max()) <= buffer.numel():
            return
        large = (size >= LIMIT).nonzero()
        if len(large):
            at = int(large[0])
            raise UserError(
                f"segment {at} takes {int(size[at])} elements of {name}, more than {LIMIT - 1}: "
                "give it fewer images"
            )
        at = int((end > buffer.numel()).nonzero()[0])
        raise UserError(
            f"segment {at} takes elements {int(start[at])} to {int(end[at])} of {name}, "
            f"which has only {buffer.numel()}: correct the offset, or make the buffer larger"
        )

    def check_weight(self, weight: Tensor, taps: int, rows: Tensor) -> None:
        """Check that stored weights are as wide as the candidates, and lie inside their buffer.

        Args:
            weight: the buffer.
            taps: positions in the window.
            rows: rows per tap that are read, `[segments]`.

        Raises:
            UserError: the first segment that does not fit.
        """
        narrow = (
            (self.column("w_columns") < self.width("n_out")) | (self.column("w_rows") < rows)
        ).nonzero()
        if len(narrow):
            segment = self.segments[int(narrow[0])]
            raise UserError(
                f"segment {int(narrow[0])} needs a weight of {int(rows[narrow[0]])} rows per tap "
                "and "
                f"{padded(segment.n_out)} columns, not of {segment.w_rows} and {segment.w_columns}"
            )
        self.check(
            "weight",
            weight,
            self.column("w"),
            taps * self.column("w_rows") * self.column("w_columns"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Segments of one candidate whose statistics become one.

    Attributes:
        first: the first of these segments, by number.
        count: how many; they stand one after another.
        out_table: where the pooled results begin, `[padded(n_out)]`.
    """

    first: int
    count: int
    out_table: int


class Pools:
    """Which segments are pooled.

    Attributes:
        table: int64 `[pools, 3]` on the device: first, count, out_table.

    Raises:
        UserError: a range outside the segments, or segments of different widths or parameters.
    """

    def __init__(self, pools: Sequence[Pool], segments: Segments) -> None:
        if not pools:
            raise UserError("there is nothing to pool: give at least one range of segments")
        for pool in pools:
            if pool.first < 0 or pool.count < 1 or pool.first + pool.count > len(segments):
                raise UserError(f"{pool} lies outside the {len(segments)} segments")
            if pool.out_table < 0 or pool.out_table % ALIGNMENT:
                raise UserError(
                    f"out_table={pool.out_table} of a pool must be a multiple of {ALIGNMENT}"
                )
            part = segments.segments[pool.first : pool.first + pool.count]
            if len({(segment.n_out, segment.params) for segment in part}) > 1:
                raise UserError(
                    f"{pool} mixes candidates: its segments must share n_out and params"
                )
        self.pools = tuple(pools)
        self.segments = segments
        rows = [[pool.first, pool.count, pool.out_table] for pool in pools]
        self.host = torch.tensor(rows, dtype=torch.int64)
        self.table = self.host.to(segments.table.device)

    def __len__(self) -> int:
        return len(self.pools)
