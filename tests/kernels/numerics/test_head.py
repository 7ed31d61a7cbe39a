"""Stem and head: bytes in, scores out, against torch in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from ragged.buffers import Buffer, Setting, channels_last, close, table
from torch.nn import functional

pytest.importorskip("triton")

from pruneopt.kernels import head, reference, statistics
from pruneopt.kernels.launch import architecture
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue, Scores, tiles
from pruneopt.kernels.segments import Segment, Segments, padded
from pruneopt.kernels.stem import stem
from pruneopt.kernels.tiles import stem_tile
from pruneopt.kernels.window import Window

pytestmark = pytest.mark.gpu

CLASSES, PIXELS = 11, 9


@pytest.mark.parametrize("evaluation", [False, True], ids=["statistics", "evaluation"])
def test_stem(setting: Setting, device: str, evaluation: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    window = Window(9, 7, (5, 3), (2, 2), (2, 1))
    pictures = torch.randint(0, 256, (5, 9, 7, 3), generator=generator, dtype=torch.uint8).to(
        device
    )
    weight = torch.zeros(15, 16, 32)
    weight[:, :3, :20] = torch.randn(15, 3, 20, generator=generator) / 45**0.5
    weight = weight.to(setting.dtype).to(device)
    normalise = Affine(
        torch.tensor([0.017, 0.0175, 0.0174]).to(device),
        torch.tensor([-2.1, -2.0, -1.8]).to(device),
    )
    rows = stem_tile(20, architecture(torch.device(device))).rows
    y, partials, out = Buffer(), Buffer(), Buffer()
    segments = [
        Segment(
            image=image,
            images=images,
            n_in=3,
            n_out=n_out,
            w_columns=32,
            y=y.reserve(images * window.out_pixels * padded(n_out)),
            partials=partials.reserve(tiles(images, window.out_pixels, rows) * padded(n_out)),
            out_table=out.reserve(padded(n_out)),
        )
        for image, images, n_out in ((0, 3, 20), (3, 2, 20), (1, 2, 7))
    ]
    on_device, on_host = Segments(segments, device), Segments(segments)
    bias = torch.randn(32, generator=generator)
    mean, m2 = (partials.tensor(torch.float32, device) for _ in range(2))
    epilogue = Output(bias.to(device), "relu") if evaluation else Partials(mean, m2, rows)
    found, expected = y.tensor(setting.dtype, device), y.tensor(torch.float64, "cpu")
    common: dict[str, Any] = {
        "normalise": normalise,
        "epilogue": epilogue,
        "precision": setting.precision,
    }
    stem(pictures, weight, found, on_device, window, **common)
    wide = Affine(normalise.scale.double().cpu(), normalise.shift.double().cpu())
    end = replace(epilogue, bias=bias.double()) if isinstance(epilogue, Output) else None
    reference.stem(
        pictures.cpu(),
        weight.double().cpu(),
        expected,
        on_host,
        window,
        normalise=wide,
        epilogue=end,
    )
    close(found, expected, setting.value, "stem")
    if isinstance(epilogue, Partials):
        average, variance = (out.tensor(torch.float32, device) for _ in range(2))
        statistics.finalize(epilogue, average, variance, on_device, window.out_pixels)
        for segment in segments:
            width = padded(segment.n_out)
            true = expected[segment.y :][: segment.images * window.out_pixels * width].view(
                -1, width
            )
            spread, centre = torch.var_mean(true[:, : segment.n_out], 0, unbiased=False)
            part = slice(segment.out_table, segment.out_table + segment.n_out)
            assert (
                (average[part].double().cpu() - centre).abs() <= 2 * setting.mean * spread.sqrt()
            ).all()
            assert (
                (variance[part].double().cpu() - spread).abs() <= setting.variance * spread
            ).all()


def test_head(setting: Setting, device: str) -> None:
    """Two candidates on the same images: prologue with residual, pooling, linear layer, scores
    against a teacher."""
    generator = torch.Generator().manual_seed(6)
    x, residual, scale, shift, pooled, logits, scores = (Buffer() for _ in range(7))
    first, second = [], []
    whole = torch.zeros(1, 48, 16)
    whole[0, :40, :CLASSES] = torch.randn(40, CLASSES, generator=generator)
    for n_in, image, images in ((40, 0, 5), (17, 2, 3)):
        in_table = scale.add(table(n_in, generator, 1.0))
        shift.add(table(n_in, generator, 0.0))
        mean = pooled.reserve(images * padded(n_in))
        first.append(
            Segment(
                x=x.add(channels_last((images, PIXELS), n_in, generator)),
                residual=residual.add(channels_last((images, PIXELS), n_in, generator)),
                y=mean,
                in_table=in_table,
                n_in=n_in,
                n_out=n_in,
                images=images,
            )
        )
        place = logits.reserve(images * padded(CLASSES))
        out = scores.reserve(images)
        second.append(
            Segment(
                x=mean,
                y=place,
                out_table=out,
                image=image,
                n_in=n_in,
                n_out=CLASSES,
                images=images,
                w_rows=48,
            )
        )
    bias = torch.randn(16, generator=generator)
    labels = torch.randint(0, CLASSES, (5,), generator=generator)
    teacher = torch.randn(5, CLASSES, generator=generator)

    def run(
        dtype: torch.dtype, where: str, reference_run: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Scores]:
        real = torch.float64 if reference_run else torch.float32
        numbers = dtype if not reference_run else torch.float64
        # Both start from values rounded to the dtype.
        data = [buffer.tensor(dtype, where).to(numbers) for buffer in (x, residual)]
        weight = whole.to(dtype).to(numbers).to(where)
        affine = Affine(
            *(buffer.tensor(torch.float32, where).to(real) for buffer in (scale, shift))
        )
        made = pooled.tensor(numbers, where), logits.tensor(real, where)
        each = scores.tensor(torch.float32, where).to(real)
        total = torch.full((2,), float("nan"), dtype=torch.float64, device=where)
        results = Scores(
            torch.full((len(each),), -1, dtype=torch.int32, device=where),
            each,
            torch.full((2,), -1, dtype=torch.int32, device=where),
            total,
            each.clone(),
            total.clone(),
        )
        tables = Segments(first, where), Segments(second, where)
        prologue = Prologue(affine, "relu", data[1])
        arguments = (
            data[0],
            PIXELS,
            weight,
            bias.to(real).to(where),
            *made,
            labels.to(where),
            results,
            tables,
        )
        if reference_run:
            reference.head(*arguments, prologue=prologue, teacher=teacher.to(real).to(where))
        else:
            head.head(
                *arguments,
                prologue=prologue,
                teacher=teacher.to(where),
                precision=setting.precision,
            )
        return *made, results

    pooled_mean, made, found = run(setting.dtype, device, False)
    true_mean, true, expected = run(setting.dtype, "cpu", True)
    close(pooled_mean, true_mean, setting.value, "pooled")
    close(made, true, 2 * setting.value, "logits")
    assert torch.equal(found.correct.cpu(), expected.correct)
    assert torch.equal(found.correct_sum.cpu(), expected.correct_sum)
    for name in ("likelihood", "divergence"):
        close(getattr(found, name), getattr(expected, name), 4 * setting.value, name)
        close(
            getattr(found, f"{name}_sum"), getattr(expected, f"{name}_sum"), 4 * setting.value, name
        )


def score_of(logits: torch.Tensor, labels: torch.Tensor, device: str) -> Scores:
    """Scores of one segment without a teacher."""
    images, classes = logits.shape
    padded_logits = torch.full((images, padded(classes)), 100.0)
    padded_logits[:, :classes] = logits
    results = Scores(
        torch.zeros(images, dtype=torch.int32, device=device),
        torch.zeros(images, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.float64, device=device),
    )
    segments = Segments([Segment(n_in=1, n_out=classes, images=images)], device)
    head.score(padded_logits.to(device), labels.to(device), results, segments)
    return results


def test_ties_and_nan(device: str) -> None:
    """The first of equal logits is the answer; a row with NaN is wrong and says so."""
    nan = float("nan")
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [nan, 0.0, 1.0], [0.0, 9.0, -9.0]])
    found = score_of(logits, torch.tensor([1, 2, 2, 1]), device)
    assert found.correct.tolist() == [1, 0, 0, 1]
    assert found.likelihood.isnan().tolist() == [False, False, True, False]
    assert found.likelihood_sum.isnan().all()


def test_more_images_than_one_block(device: str) -> None:
    """Large logits do not overflow, and sums run over several blocks."""
    generator = torch.Generator().manual_seed(7)
    logits, labels = (
        torch.randn(300, 5, generator=generator) * 200,
        torch.randint(0, 5, (300,), generator=generator),
    )
    found = score_of(logits, labels, device)
    likelihood = -functional.cross_entropy(logits.double(), labels, reduction="none")
    assert found.correct_sum.item() == int((logits.argmax(1) == labels).sum())
    assert (
        found.likelihood.double().cpu() - likelihood
    ).abs().max() <= 1e-6 * likelihood.abs().max()
    assert found.likelihood_sum.item() == pytest.approx(float(likelihood.sum()), rel=1e-6)
