"""The segment table: what it holds, and what it refuses."""

import re

import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.kernels.segments import LIMIT, Pool, Pools, Segment, Segments, padded

GOOD = {"n_in": 20, "n_out": 40, "images": 2}


def test_columns_follow_the_fields() -> None:
    table = Segments(
        [
            Segment(x=16, w=32, y=48, partials=64, **GOOD),
            Segment(n_in=3, n_out=1, images=5, image=7),
        ]
    )
    assert table.table.dtype == torch.int64
    assert table.table.shape == (2, 16)
    assert table.host[0].tolist() == [16, 32, 48, 0, 64, 0, 0, 0, 0, 0, 0, 20, 40, 48, 32, 2]
    assert table.column("image").tolist() == [0, 7]
    assert table.width("n_out").tolist() == [48, 16]
    assert table.largest("images") == 5


def test_the_kernels_read_the_same_columns() -> None:
    common = pytest.importorskip("pruneopt.kernels.device.common", exc_type=Exception)  # type: ignore[arg-type]
    fields = Segment.__dataclass_fields__
    assert [getattr(common, name.upper()).value for name in fields] == list(range(len(fields)))
    assert common.FIELDS.value == len(fields)


def test_bases_may_lie_beyond_32_bits() -> None:
    assert Segments([Segment(x=2**40, **GOOD)]).table[0, 0] == 2**40


@pytest.mark.parametrize(("width", "stored"), [(1, 16), (16, 16), (17, 32)])
def test_padded(width: int, stored: int) -> None:
    assert padded(width) == stored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_in": 0}, "a segment of 2 images from 0 to 40 channels is empty"),
        ({"images": 0}, "a segment of 0 images"),
        ({"y": 8}, "offset y=8 of a segment must be a multiple of 16"),
        ({"x": -16}, "offset x=-16"),
        ({"image": -1}, "image=-1"),
        ({"w_columns": 40}, "w_columns=40 of a segment must be a multiple of 16"),
        ({"w_rows": 17}, "w_rows=17"),
    ],
)
def test_a_bad_segment_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Segment(**GOOD | changes)


def test_a_table_needs_segments() -> None:
    with pytest.raises(UserError, match="1 to 65535 segments, not 0"):
        Segments([])


def test_a_part_outside_its_buffer_is_refused() -> None:
    table = Segments([Segment(**GOOD), Segment(x=16, **GOOD)])
    buffer = torch.empty(40)
    table.check("x", buffer, table.column("x"), torch.tensor([40, 24]))
    with pytest.raises(
        UserError, match=r"segment 1 takes elements 16 to 41 of x, which has only 40"
    ):
        table.check("x", buffer, table.column("x"), torch.tensor([40, 25]))


def test_a_segment_beyond_32_bits_is_refused() -> None:
    table = Segments([Segment(**GOOD)])
    huge = torch.empty(2 * LIMIT, device="meta")
    table.check("y", huge, table.column("y"), torch.tensor([LIMIT - 1]))
    with pytest.raises(
        UserError, match="segment 0 takes 2147483648 elements of y, more than 2147483647"
    ):
        table.check("y", huge, table.column("y"), torch.tensor([LIMIT]))


def test_a_narrow_weight_is_refused() -> None:
    table = Segments([Segment(w_rows=16, **GOOD)])
    with pytest.raises(
        UserError, match="needs a weight of 32 rows per tap and 48 columns, not of 16 and 48"
    ):
        table.check_weight(torch.empty(10**6), 9, table.width("n_in"))


def test_pools_are_ranges_of_one_candidate() -> None:
    wide, narrow = Segment(**GOOD), Segment(n_in=3, n_out=8, images=1)
    table = Segments([wide, wide, narrow])
    assert Pools([Pool(first=0, count=2, out_table=32)], table).table.tolist() == [[0, 2, 32]]
    for pool, message in (
        (Pool(first=1, count=2, out_table=0), "mixes candidates"),
        (Pool(first=2, count=2, out_table=0), "outside the 3 segments"),
        (Pool(first=0, count=1, out_table=8), "out_table=8 of a pool must be a multiple of 16"),
    ):
        with pytest.raises(UserError, match=message):
            Pools([pool], table)
    with pytest.raises(UserError, match="nothing to pool"):
        Pools([], table)
