"""Misuse of the kernels is one clear sentence, on a machine without a GPU as well."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from pruneopt.kernels.launch import Launch

pytest.importorskip("triton")

from pruneopt.errors import UserError
from pruneopt.kernels import convolution, elementwise, head, statistics
from pruneopt.kernels.convolution import conv_launch, dwconv_launch
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue, Scores, tiles
from pruneopt.kernels.segments import Segment, Segments
from pruneopt.kernels.stem import stem_launch
from pruneopt.kernels.tiles import Tile, conv_tile
from pruneopt.kernels.window import POINT, Window

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs without a GPU"
)

TILE = Tile(32, 32, 32, 1, 1)
SAME = Window(4, 4, (3, 3), padding=(1, 1))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def segments(**changes: int) -> Segments:
    return Segments([Segment(**{"n_in": 20, "n_out": 20, "images": 2} | changes)], "meta")


def launch(**changes: object) -> Launch:
    """Return a convolution that is right but for the changes."""
    arguments = {
        "x": meta(2, 4, 4, 32),
        "weight": meta(9, 32, 32),
        "y": meta(2, 4, 4, 32),
        "segments": segments(),
    }
    return conv_launch(**arguments | {"window": SAME, "tile": TILE} | changes)  # type: ignore[arg-type]


def test_what_is_right_is_accepted() -> None:
    """Its 32 pixels and 20 channels are one tile of 32 by 32."""
    assert launch().grid == (1, 1, 1)


table = Affine(meta(32), meta(32))
WRONG: list[tuple[dict[str, object], str]] = [
    ({"x": meta(2, 4, 4, 16)}, "segment 0 takes elements 0 to 1024 of x, which has only 512"),
    ({"weight": meta(9, 32, 16)}, "takes elements 0 to 9216 of weight, which has only 4608"),
    ({"y": meta(2, 4, 3, 32)}, "of y, which has only 768"),
    ({"x": meta(2, 32, 4, 4).transpose(1, 3)}, "x of shape [2, 4, 4, 32] is not contiguous"),
    (
        {"x": meta(2, 4, 4, 32, dtype=torch.float64)},
        "x is float64, and must be float32 or float16 or bfloat16",
    ),
    ({"weight": meta(9, 32, 32, dtype=torch.float16)}, "weight is float16, and must be float32"),
    ({"y": meta(2, 4, 4, 32, dtype=torch.float16)}, "y is float16, and must be float32"),
    ({"x": torch.empty(2, 4, 4, 32)}, "x is on cpu but the segment table on meta"),
    ({"prologue": Prologue(Affine(meta(16), meta(32)))}, "affine scale, which has only 16"),
    (
        {"prologue": Prologue(Affine(meta(32), meta(32, dtype=torch.float16)))},
        "affine shift is float16",
    ),
    ({"prologue": Prologue(table, residual=meta(512))}, "of residual, which has only 512"),
    (
        {
            "prologue": Prologue(
                table, residual=meta(1024), residual_affine=Affine(meta(8), meta(8))
            )
        },
        "has only 8",
    ),
    ({"epilogue": Partials(meta(32), meta(32), 64)}, "laid out for tiles of 64 rows, not 32"),
    ({"epilogue": Partials(meta(16), meta(32), 32)}, "of partial mean, which has only 16"),
    ({"epilogue": Output(meta(16))}, "takes elements 0 to 20 of bias, which has only 16"),
    ({"epilogue": Output(None, "relu", meta(16))}, "of residual, which has only 16"),
    ({"groups": 3}, "groups=3 does not divide the channels"),
    ({"precision": "bf16"}, "precision 'bf16' is unknown"),
    (
        {"window": Window(4, 4, (3, 3)), "prologue": Prologue(table, materialised=meta(1024))},
        "use add_act",
    ),
    (
        {"prologue": Prologue(residual=meta(1024)), "epilogue": Output(residual=meta(1024))},
        "adds a residual before or after, not both",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_bad_convolution_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        launch(**changes)


def test_an_unaligned_buffer_is_refused() -> None:
    table = Segments([Segment(n_in=20, n_out=20, images=1)])
    unaligned = torch.empty(1025)[1:]
    with pytest.raises(UserError, match="x does not begin at a multiple of 16 bytes"):
        conv_launch(unaligned, torch.empty(9, 32, 32), torch.empty(1024), table, SAME, tile=TILE)


def test_depthwise_widths_are_equal() -> None:
    with pytest.raises(UserError, match="as many outputs as inputs"):
        dwconv_launch(meta(1024), meta(9, 1, 32), meta(1024), segments(n_out=17), SAME, tile=TILE)


def pictures(**changes: object) -> None:
    shape = {"pictures": meta(2, 4, 4, 3, dtype=torch.uint8), "segments": segments(n_in=3)}
    rest = {"weight": meta(9, 16, 32), "y": meta(1024), "window": SAME, "tile": TILE}
    stem_launch(**shape | rest | {"normalise": Affine(meta(3), meta(3))} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pictures": meta(2, 4, 5, 3, dtype=torch.uint8)},
            "do not fit the window: give them as [pictures, 4, 4",
        ),
        ({"pictures": meta(2, 4, 4, 3)}, "pictures is float32, and must be uint8"),
        ({"segments": segments(n_in=1)}, "set n_in=3 in every segment"),
        ({"normalise": Affine(meta(1), meta(1))}, "one number for each of the 3 colours"),
        (
            {"segments": segments(n_in=3, image=1)},
            "takes elements 48 to 144 of pictures, which has only 96",
        ),
    ],
)
def test_bad_pictures_are_refused(changes: dict[str, object], message: str) -> None:
    pictures()
    with pytest.raises(UserError, match=re.escape(message)):
        pictures(**changes)


def test_bad_indices_are_refused() -> None:
    weight, packed, three = meta(8, 4, 3, 3), meta(9, 16, 16), torch.tensor([0, 1, 2])
    elementwise.pack_launch(weight, three, three, packed)
    cases: list[tuple[tuple[torch.Tensor, ...], str]] = [
        (
            (weight, torch.tensor([8]), three, packed),
            "keep_out reaches from 8 to 8, outside 0 to 7",
        ),
        (
            (weight, three, torch.tensor([-1]), packed),
            "keep_in reaches from -1 to -1, outside 0 to 3",
        ),
        ((weight, three.int(), three, packed), "keep_out must be int64 indices on the host"),
        ((weight, three, three, meta(9, 8, 16)), "round both up to multiples of 16"),
        (
            (weight, three, three, meta(1, 16, 16)),
            "9 taps does not fit packed of shape [1, 16, 16]",
        ),
        (
            (weight, three, torch.zeros(2, 2, dtype=torch.int64), packed),
            "3 outputs are not 2 equal shares",
        ),
        ((meta(8), three, three, packed), "pack takes a weight [out, in, ...]"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            elementwise.pack_launch(*arguments)


def test_statistics_need_their_parameters() -> None:
    partials = Partials(meta(32), meta(32), 32)
    with pytest.raises(UserError, match="made of gamma and beta"):
        statistics.finalize_launch(partials, meta(32), meta(32), segments(), 16, affine=table)
    with pytest.raises(UserError, match="of mean, which has only 16"):
        statistics.finalize_launch(partials, meta(16), meta(32), segments(), 16)


def test_scores_and_their_teacher_belong_together() -> None:
    integer, double = torch.int32, torch.float64
    scores = Scores(meta(2, dtype=integer), meta(2), meta(1, dtype=integer), meta(1, dtype=double))
    labels = meta(2, dtype=torch.int64)
    head.score_launches(meta(64), labels, scores, segments())
    with pytest.raises(UserError, match="belong together"):
        head.score_launches(meta(64), labels, scores, segments(), teacher=meta(2, 20))
    with pytest.raises(UserError, match="of labels, which has only 1"):
        head.score_launches(meta(64), meta(1, dtype=torch.int64), scores, segments())
    with pytest.raises(UserError, match="too many"):
        head.score_launches(meta(64), labels, scores, segments(n_out=20000))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: Prologue(activation="gelu"),
            "activation 'gelu' is unknown",
        ),
        (lambda: Prologue(residual_affine=table), "residual_affine is given without a residual"),
        (lambda: Tile(48, 32, 32, 4, 2), "are powers of two"),
        (
            lambda: elementwise.add_act_launch(meta(64), segments(), 1, Prologue(), tile=TILE),
            "has nowhere to write",
        ),
    ],
)
def test_bad_operands_are_refused(made: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu() -> None:
    """The launch, and the choice of a tile, say what is missing and what to use instead."""
    host = Segments([Segment(n_in=20, n_out=20, images=2)])
    buffers = torch.empty(2, 32), torch.empty(1, 32, 32), torch.empty(2, 32)
    for tile in (None, TILE):
        with pytest.raises(
            UserError, match=r"need an NVIDIA GPU, and these tensors are on cpu: .*reference"
        ):
            convolution.conv(*buffers, host, POINT, tile=tile)


def test_without_triton() -> None:
    """Without Triton only what needs it fails, and says so; nothing else loads it."""
    code = """
import sys
import torch
before = "triton" in sys.modules
import pruneopt, pruneopt.kernels.reference, pruneopt.kernels.bn_statistics
print(("triton" in sys.modules) == before)
for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
    del sys.modules[name]
sys.modules["triton"] = None
try:
    import pruneopt.kernels.convolution
except pruneopt.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    same, sentence = done.stdout.splitlines()
    assert same == "True"
    assert sentence.startswith("the GPU kernels need Triton, which cannot be imported here")


def test_interpreted_kernels_are_not_compiled() -> None:
    code = """
import torch
from pruneopt.errors import UserError
from pruneopt.kernels.compiling import build
from pruneopt.kernels.launch import Launch, _nothing
try:
    build(Launch(_nothing, (1, 1, 1), {}, {}, 1, 1), 80)
except UserError as error:
    print(error)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "nothing is compiled" in done.stdout


def test_too_many_programs() -> None:
    made = conv_launch(meta(2**33), meta(9, 32, 32), meta(2**33), segments(), SAME, tile=TILE)
    large = type(made)(made.kernel, (1, 70000, 1), made.arguments, made.constants, 1, 1)
    with pytest.raises(UserError, match="too large"):
        large.run()


def test_every_architecture_has_tiles() -> None:
    for architecture in (0, 80, 86, 89, 90, 100, 120):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for n_out in (1, 17, 64, 65, 2048):
                tile = conv_tile(n_out, 64, dtype, architecture)
                assert tile.columns >= min(n_out, 64 if architecture else 32)
    assert tiles(3, 49, 128) == 2
