"""Racing: what it gives up, what it says of that, and how it goes on after an interruption."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.passes.evaluation.race import Race, Result, Rung, rungs_of

IMAGES = 2000


def test_rungs_double() -> None:
    assert rungs_of(20, 1000, 200) == (Rung(5, 200), Rung(10, 400), Rung(20, 800), Rung(20, 1000))
    assert rungs_of(3, 300, 200) == (Rung(1, 200), Rung(3, 300))
    assert (
        rungs_of(20, 1000, None)
        == rungs_of(20, 1000, 1000)
        == rungs_of(20, 1000, 5000)
        == (Rung(20, 1000),)
    )
    with pytest.raises(UserError, match="race=1 images"):
        rungs_of(20, 1000, 1)


def field(seed: int, candidates: int, images: int = IMAGES) -> Tensor:
    """Hits `[candidates, images]` of networks that differ in skill, on images that differ in
    difficulty."""
    generator = torch.Generator().manual_seed(seed)
    skill = 0.6 * torch.randn(candidates, 1, generator=generator)
    difficulty = 2 * torch.randn(1, images, generator=generator)
    return (
        torch.rand(candidates, images, generator=generator) < torch.sigmoid(skill - difficulty)
    ).float()


def run(race: Race, hits: Tensor) -> tuple[list[Result], int]:
    """Return the results, and how many images were looked at."""
    seen = 0

    def scores(row: Tensor, rung: Rung) -> Tensor:
        return row[: rung.images]

    found = []
    for row in hits:
        found.append(race.judge(lambda rung, row=row: scores(row, rung)))  # type: ignore[misc]
        seen += found[-1].rung.images
    return found, seen


def test_a_race_finds_the_winner_with_a_fraction_of_the_images() -> None:
    for seed in range(20):
        hits = field(seed, 200)
        full = hits.mean(1)
        results, seen = run(Race(rungs_of(20, IMAGES, 128)), hits)
        values = torch.tensor([item.value for item in results])
        assert float(full.max() - full[values.argmax()]) <= 0.002
        assert seen < 200 * IMAGES / 3
        pairs = torch.triu_indices(200, 200, 1)
        agree = torch.sign(full[pairs[0]] - full[pairs[1]]) * torch.sign(
            values[pairs[0]] - values[pairs[1]]
        )
        assert float(agree.mean()) > 0.65  # Kendall's tau; most were seen on 128 images


def test_several_are_kept_apart() -> None:
    hits = field(3, 100)
    results, _ = run(Race(rungs_of(20, IMAGES, 128), keep=10), hits)
    best = set(hits.mean(1).argsort(descending=True)[:10].tolist())
    found = set(
        torch.tensor([item.value for item in results]).argsort(descending=True)[:10].tolist()
    )
    assert len(best & found) >= 9


@given(st.integers(0, 1000), st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_who_comes_to_the_end_has_the_full_score_and_who_does_not_is_worse(
    seed: int, candidates: int
) -> None:
    hits = field(seed, candidates, 300)
    race = Race(rungs_of(8, 300, 50))
    results, _ = run(race, hits)
    best = -math.inf
    for row, result in zip(hits, results, strict=True):
        if result.rung is race.rungs[-1]:
            assert result.value == pytest.approx(float(row.mean()))
            best = max(best, result.value)
        else:
            assert result.value <= best
            assert len(result.per_rung[-1]) == result.rung.images
    assert race.best[0].value == best


def test_the_first_is_never_given_up_and_without_a_race_none_is() -> None:
    hits = field(0, 30, 500)
    assert run(Race(rungs_of(4, 500, 50)), hits)[0][0].rung.images == 500
    results, seen = run(Race(rungs_of(4, 500, None)), hits)
    assert seen == 30 * 500
    assert [item.value for item in results] == pytest.approx(hits.mean(1).tolist())


def test_an_estimate_is_paired() -> None:
    """A candidate with the rival's hits but for every tenth image is 0.1 worse, whatever images
    were looked at."""
    first = (torch.arange(1000) % 3 < 2).float()
    first[:100] = 0.5  # the first part is harder than the rest
    second = first - 0.1
    race = Race(rungs_of(4, 1000, 100))
    race.judge(lambda rung: first[: rung.images])
    result = race.judge(lambda rung: second[: rung.images])
    assert result.rung.images == 100
    assert result.value == pytest.approx(float(second.mean()), abs=1e-6)


def test_an_accuracy_is_not_estimated_below_zero() -> None:
    """Images that are easy for the winner say that all others are harder, and nobody hits less than
    none."""
    first = torch.cat([torch.ones(100), torch.zeros(100)])
    race = Race(rungs_of(4, 200, 100))
    race.judge(lambda rung: first[: rung.images])
    result = race.judge(lambda rung: torch.zeros(rung.images))
    assert (result.value, result.rung.images) == (0.0, 100)


def test_a_race_goes_on_from_what_it_wrote_down() -> None:
    hits = field(5, 40, 400)
    whole = Race(rungs_of(8, 400, 50), keep=2)
    results, _ = run(whole, hits)
    again = Race(whole.rungs, keep=2)
    for item in results[:20]:
        if item.rung is whole.rungs[-1]:
            again.recall(item.pack())
    rest, _ = run(again, hits[20:])
    assert [item.value for item in rest] == [item.value for item in results[20:]]
    assert [item.rung for item in rest] == [item.rung for item in results[20:]]


@pytest.mark.parametrize("text", ["nothing", "", "eJwDAAAAAAE="])
def test_a_journal_that_is_not_of_this_race(text: str) -> None:
    with pytest.raises(UserError, match="the journal's scores of a race cannot be read"):
        Race(rungs_of(8, 400, 50)).recall(text)
    other = Result(0.5, Rung(1, 10), (torch.zeros(10),))
    with pytest.raises(UserError, match="10 scores for"):
        Race(rungs_of(8, 400, 50)).recall(other.pack())
