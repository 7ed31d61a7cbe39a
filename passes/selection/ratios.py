"""Ratios: how much of every layer is pruned, the ways to write it, and the counts that follow.

`min(ceil(ratio * n), n - 1)` groups of a layer go (GReg, arXiv 2012.09243, as its released code
counts). Ratios are kept as the fractions that were written, so that no product falls on the wrong
side of a whole number.

    0.5                          every prunable layer alike
    [0,0.5,0.6,0.4,0,0]          by stage: the stem, the residual stages, what follows them
    [0-4:0.5,7-10:0.2]           by number of the convolution or linear layer, from 0, ends included
    layer1:0.5,layer2.0.conv1:0.3   by module or channel group; the longest name that fits counts
    plan.json                    as in another plan of the same network
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import is_within
from pruneopt.passes.analysis.channels.plan import load_plan
from pruneopt.passes.analysis.residual.stage_numbers import StagedLayer, StagedLayers
from pruneopt.passes.selection.prunable import Prunable

__all__ = [
    "COMPAT",
    "FORMS",
    "RATIOS",
    "SKIP",
    "SkipRule",
    "check_ratios",
    "is_plan",
    "pruned_count",
    "ratios_of",
    "skipped",
]

FORMS = (
    "one ratio (0.5), a list by stage ([0,0.5,0.6,0]), a map by layer number ([0-4:0.5,7-10:0.2]) "
    "or by name "
    "(layer1.0.conv1:0.5,layer2:0.3), or a plan.json"
)
RATIOS = (
    "what goes of each layer: 0.5, [0,0.5,0.6,0] by stage, [0-4:0.5] by number, layer1:0.5, "
    "or plan.json"
)
SKIP = "layers that keep everything: ids such as 1.0 or 2.3.1, or names of modules"
COMPAT = "skip by whole numbers, or, as published, by the beginning of the id's text"
"""The help of the options that passes share."""
SkipRule = Literal["exact", "prefix"]
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_ID = re.compile(r"\d+(\.(\d+|-1))*")


def pruned_count(ratio: Fraction, count: int, step: int = 1) -> int:
    """Return how many of ``count`` groups go.

    That is `min(ceil(ratio * n), n - 1)` in each of ``step`` blocks of n groups.
    """
    each = count // step
    if each == 0:
        return 0
    return step * min(-(-ratio.numerator * each // ratio.denominator), each - 1)


def check_ratios(text: str) -> None:
    """Raise `UserError` for a text in none of the `FORMS`."""
    if not is_plan(text):
        _parse(text)


def ratios_of(
    text: str, layers: Sequence[Prunable], places: StagedLayers, coupling: Coupling
) -> list[Fraction]:
    """Return the ratio of every layer, from a text in a form of `FORMS`; the smallest of several.

    Raises:
        UserError: a text in none of the forms, or one that does not fit the network or what can be
            pruned in it.
    """
    return (
        _from_plan(text, layers, coupling)
        if is_plan(text)
        else _parse(text).ratios(text, layers, places)
    )


def skipped(
    layers: Sequence[Prunable], places: StagedLayers, skip: Sequence[str], rule: SkipRule = "exact"
) -> list[bool]:
    """Return which layers keep everything.

    Args:
        skip: ``stage.block.conv`` ids (in networks without residual blocks: numbers of layers) or
            names of modules.
        rule: ``1.1`` means block 1 of stage 1, or, by ``prefix``, every id whose text begins so
            (``1.10`` too), as the released code of GReg has it.

    Raises:
        UserError: an entry that fits no layer.
    """
    found = _skipped(skip, places, rule)
    return [any(place in found for place in layer.places) for layer in layers]


# Texts


@dataclass(frozen=True, slots=True)
class _Alike:
    ratio: Fraction

    def ratios(self, text: str, layers: Sequence[Prunable], places: StagedLayers) -> list[Fraction]:
        return [self.ratio] * len(layers)


@dataclass(frozen=True, slots=True)
class _ByStage:
    values: tuple[Fraction, ...]

    def ratios(self, text: str, layers: Sequence[Prunable], places: StagedLayers) -> list[Fraction]:
        if places.stages == 0:
            raise UserError(
                f"ratios={text} is a list by stage, but the network has no residual blocks: number "
                "its layers instead, "
                "as in [0-4:0.5,7-10:0.2]"
            )
        if len(self.values) != places.stages + 2:
            raise UserError(
                f"ratios={text} has {len(self.values)} entries; this network takes "
                f"{places.stages + 2}: its stem, "
                f"{places.stages} stages, and what follows them"
            )
        _check_used(
            text,
            self.values,
            [[place.stage or 0 for place in layer.places] for layer in layers],
            "stage",
        )
        return [min(self.values[place.stage or 0] for place in layer.places) for layer in layers]


@dataclass(frozen=True, slots=True)
class _ByNumber:
    ranges: tuple[tuple[int, int, Fraction], ...]

    def ratios(self, text: str, layers: Sequence[Prunable], places: StagedLayers) -> list[Fraction]:
        count = len(places.layers)
        last = max(stop for _, stop, _ in self.ranges)
        if last >= count:
            raise UserError(
                f"ratios={text} names layer {last}, but the layers of this network are 0 to "
                f"{count - 1}"
            )
        values = [Fraction(0)] * count
        given: set[int] = set()
        for start, stop, ratio in self.ranges:
            for number in range(start, stop + 1):
                if number in given:
                    raise UserError(f"ratios={text} gives layer {number} twice")
                given.add(number)
                values[number] = ratio
        numbers = {place.index for layer in layers for place in layer.places}
        for start, stop, ratio in self.ranges:
            if ratio and not numbers.intersection(range(start, stop + 1)):
                what = f"layer {start}" if start == stop else f"layers {start} to {stop}"
                raise UserError(
                    f"ratios={text}: nothing in {what} can be pruned in this way; give 0 there"
                )
        return [min(values[place.index] for place in layer.places) for layer in layers]


@dataclass(frozen=True, slots=True)
class _ByName:
    values: tuple[tuple[str, Fraction], ...]

    def ratios(self, text: str, layers: Sequence[Prunable], places: StagedLayers) -> list[Fraction]:
        known = [[layer.name, *([layer.group] if layer.group else [])] for layer in layers]
        for name, _ in self.values:
            if not any(_fits(name, names) for names in known):
                guess = did_you_mean(name, [layer.name for layer in layers])
                raise UserError(
                    f"ratios={text}: {name} is no layer that can be pruned in this way; {guess}"
                )
        return [self._of(names) for names in known]

    def _of(self, names: list[str]) -> Fraction:
        """Return an exact name before a module that holds the layer; of these the innermost."""
        fitting = [
            (name in names, len(name), ratio) for name, ratio in self.values if _fits(name, names)
        ]
        return max(fitting, key=lambda item: item[:2])[2] if fitting else Fraction(0)


def _fits(name: str, names: Sequence[str]) -> bool:
    return any(is_within(known, name) for known in names)


def _check_used(
    text: str, values: Sequence[Fraction], stages: Sequence[Sequence[int]], what: str
) -> None:
    """Raise `UserError` for a ratio that no prunable layer has: it would be without effect."""
    for stage, ratio in enumerate(values):
        if ratio and not any(stage in theirs for theirs in stages):
            where = (
                "the stem"
                if stage == 0
                else "what follows the stages"
                if stage == len(values) - 1
                else what
            )
            shown = where if where != what else f"{what} {stage}"
            raise UserError(
                f"ratios={text} gives {float(ratio):g} to {shown}, where nothing can be pruned in "
                "this way: give 0 "
                "(channels that are summed with others go only in whole groups, with scope=coupled "
                "or "
                "granularity=unit)"
            )


def _parse(text: str) -> _Alike | _ByStage | _ByNumber | _ByName:
    body = text.strip()
    listed = body.startswith("[") and body.endswith("]")
    entries = [entry.strip() for entry in (body[1:-1] if listed else body).split(",")]
    if not all(entries):
        raise UserError(f"ratios={text} has an empty place: write {FORMS}")
    if not any(":" in entry for entry in entries):
        values = tuple(_ratio(text, entry) for entry in entries)
        return _Alike(values[0]) if len(values) == 1 and not listed else _ByStage(values)
    if not all(":" in entry for entry in entries):
        raise UserError(f"ratios={text} mixes a list and a map: write {FORMS}")
    pairs = [
        (name.strip(), _ratio(text, value.strip()))
        for name, _, value in (e.rpartition(":") for e in entries)
    ]
    ranges = [_RANGE.fullmatch(name) for name, _ in pairs]
    if all(ranges):
        return _ByNumber(
            tuple(
                _range(text, match, ratio) for match, (_, ratio) in zip(ranges, pairs, strict=True)
            )
        )
    if any(ranges) or not all(name for name, _ in pairs):
        raise UserError(f"ratios={text} mixes numbers and names of layers: write {FORMS}")
    if len({name for name, _ in pairs}) < len(pairs):
        raise UserError(f"ratios={text} gives a name twice")
    return _ByName(tuple(pairs))


def _range(text: str, match: re.Match[str] | None, ratio: Fraction) -> tuple[int, int, Fraction]:
    assert match is not None
    start, stop = int(match[1]), int(match[2] or match[1])
    if stop < start:
        raise UserError(f"ratios={text}: the range {match[0]} runs backwards")
    return start, stop, ratio


def _ratio(text: str, value: str) -> Fraction:
    try:
        ratio = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"ratios={text}: {value!r} is no ratio; write {FORMS}") from None
    if not 0 <= ratio < 1:
        raise UserError(
            f"ratios={text}: {value} must be the share that goes, at least 0 and below 1"
        )
    return ratio


# Plans


def is_plan(text: str) -> bool:
    """Return whether a text names a file with a plan."""
    return text.endswith(".json")


def _from_plan(path: str, layers: Sequence[Prunable], coupling: Coupling) -> list[Fraction]:
    plan = load_plan(path, coupling)
    if any(layer.group is None for layer in layers):
        raise UserError(
            f"{path} says which channels stay, not which weights: it has no ratios of weights"
        )
    mine = {layer.group for layer in layers}
    for name, kept in plan.items():
        if name not in mine and len(kept) < coupling.group(name).width:
            raise UserError(
                f"{path} cuts group {name}, which cannot be pruned in this way: try scope=coupled"
            )
    return [
        1 - Fraction(len(plan[layer.group]), layer.count) if layer.group in plan else Fraction(0)
        for layer in layers
    ]


# What is skipped


def _skipped(skip: Sequence[str], places: StagedLayers, rule: SkipRule) -> set[StagedLayer]:
    found: set[StagedLayer] = set()
    for text in skip:
        hit = {place for place in places.layers if _has_id(place, text, places, rule)}
        hit = hit or {place for place in places.layers if _fits(text, [place.module])}
        if not hit:
            ids = _ID.fullmatch(text) is not None
            known = {
                name for place in places.layers for name in ([place.id] if ids else _modules(place))
            }
            raise UserError(f"skip={text} fits no layer: {did_you_mean(text, known)}")
        found |= hit
    return found


def _modules(place: StagedLayer) -> list[str]:
    """Return the module of a layer and those that hold it."""
    parts = place.module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _has_id(place: StagedLayer, text: str, places: StagedLayers, rule: SkipRule) -> bool:
    if places.stages == 0:
        return str(place.index) == text
    return place.id.startswith(text) if rule == "prefix" else f"{place.id}.".startswith(f"{text}.")
