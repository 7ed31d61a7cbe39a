"""Parts of passes: found by kind and name, nested as text and back, as text in Python, and every
way to be wrong."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.analysis.importance.criteria import L1Norm, Taylor
from pruneopt.passes.analysis.importance.importance import Criterion
from pruneopt.passes.options import registry, spec
from pruneopt.passes.options.configured import Part, option
from pruneopt.passes.options.option_types import option_fields
from pruneopt.passes.options.registry import PART_GROUPS, part_class, part_kinds, part_names
from pruneopt.passes.options.spec import check_options, parse_part, pass_text
from pruneopt.passes.pipeline import text as pipeline_texts
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import all_passes
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text
from pruneopt.passes.regularised.greg import GReg1
from pruneopt.passes.regularised.regularised import Regulariser
from pruneopt.passes.regularised.slimming import Slimming
from pruneopt.passes.search.abn import AdaptiveBN
from pruneopt.passes.search.evaluators.evaluator import Evaluator, FreshStatistics, StaleStatistics
from pruneopt.passes.search.rankings.ranking import Ranking
from pruneopt.passes.search.searchers.evolution import Evolution
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.searcher import FrontSearcher, Searcher
from pruneopt.passes.selection.prune import Prune
from pruneopt.passes.targets.target import Target
from pruneopt.passes.training.recipe import SGD, Recipe

BASES: dict[str, type[Part]] = {
    "criterion": Criterion,
    "searcher": Searcher,
    "evaluator": Evaluator,
    "ranking": Ranking,
    "regulariser": Regulariser,
    "recipe": Recipe,
    "target": Target,
}


# The registry


def test_every_kind_has_a_class_and_a_group() -> None:
    assert set(part_kinds()) == set(PART_GROUPS) == set(BASES)
    assert all(base.kind == kind for kind, base in BASES.items())


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in part_kinds() for name in part_names(kind)]
)
def test_built_in_parts_load_and_can_be_written(kind: str, name: str) -> None:
    found = part_class(kind, name)
    # A searcher may know several objectives instead of one.
    assert issubclass(found, (BASES[kind], FrontSearcher) if kind == "searcher" else BASES[kind])
    assert (found.kind, found.name) == (kind, name)
    assert found.summary
    assert found.__doc__
    assert list(check_options(found)) == []


@pytest.mark.parametrize("name", list(all_passes()))
def test_default_parts_are_registered(name: str) -> None:
    """Or ``pass{part=...}`` could not name what stands there already."""
    for field in option_fields(all_passes()[name]):
        if isinstance(field.default, Part):
            assert part_class(field.default.kind, field.default.name) is type(field.default)


def mine(kind: str) -> type[Part]:
    """A part of somebody else's package."""
    body = {
        "__annotations__": {"name": ClassVar[str], "summary": ClassVar[str], "strength": int},
        "__module__": "elsewhere",
        "name": "mine",
        "summary": "of another package",
        "strength": option(1, "how much"),
    }
    found: Any = dataclass(frozen=True)(type("Mine", (BASES[kind],), body))
    found.__abstractmethods__ = frozenset()  # what the methods do is no matter here
    made: type[Part] = found
    return made


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[EntryPoint]]]:
    """Entry points by group, as if packages were installed."""
    installed: dict[str, list[EntryPoint]] = {}
    module = ModuleType("elsewhere")
    for kind in BASES:
        setattr(module, f"Mine_{kind}", mine(kind))
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: tuple(installed.get(group, ())))
    registry._parts.cache_clear()
    yield installed
    registry._parts.cache_clear()


def install(
    installed: dict[str, list[EntryPoint]], kind: str, value: str, name: str = "mine"
) -> None:
    installed.setdefault(PART_GROUPS[kind], []).append(EntryPoint(name, value, PART_GROUPS[kind]))


@pytest.mark.parametrize("kind", list(BASES))
def test_packages_add_parts(elsewhere: dict[str, list[EntryPoint]], kind: str) -> None:
    install(elsewhere, kind, f"elsewhere:Mine_{kind}")
    assert part_names(kind)[-1] == "mine"
    assert part_names(kind)[:-1] == tuple(registry._PARTS[kind])
    found: Any = parse_part(BASES[kind], "mine{strength=3}")
    assert (type(found).__module__, found.strength) == ("elsewhere", 3)
    assert pass_text(found) == "mine{strength=3}"
    other = next(item for item in BASES if item != kind)
    assert "mine" not in part_names(other)


def test_an_added_part_is_used_by_a_pass(elsewhere: dict[str, list[EntryPoint]]) -> None:
    install(elsewhere, "searcher", "elsewhere:Mine_searcher")
    (found,) = parse_pipeline("abn{searcher=mine strength=4}")
    assert pipeline_text([found]) == "abn{searcher=mine{strength=4}}"


def test_two_parts_of_one_name(elsewhere: dict[str, list[EntryPoint]]) -> None:
    install(elsewhere, "searcher", "elsewhere:Mine_searcher", "evolution")
    with pytest.raises(
        UserError,
        match=r"two packages define a searcher named 'evolution': pruneopt \(.*Evolution\)",
    ):
        part_names("searcher")
    install(elsewhere, "ranking", "elsewhere:Mine_ranking", "evolution")
    assert "evolution" in part_names("ranking"), "kinds do not share names"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            "elsewhere:Mine_ranking",
            UserError,
            "registered as the searcher 'mine', is not a searcher of that name",
        ),
        (
            "elsewhere:Nothing",
            UserError,
            "the searcher mine cannot be loaded .* repair or uninstall it",
        ),
        ("no_such_module_here:A", UserError, "the searcher mine cannot be loaded"),
        ("json:JSONDecoder", UserError, "is not a searcher of that name"),
        (
            "pruneopt.passes.search.searchers.evolution:Evolution",
            UserError,
            "is not a searcher of that name",
        ),
        (
            "pruneopt.passes.search.searchers.evolution:Nothing",
            InternalError,
            "the searcher mine cannot be loaded",
        ),
    ],
)
def test_broken_parts(
    elsewhere: dict[str, list[EntryPoint]], value: str, error: type[Exception], message: str
) -> None:
    install(elsewhere, "searcher", value)
    with pytest.raises(error, match=message):
        part_class("searcher", "mine")


def test_unknown_parts_get_a_hint() -> None:
    with pytest.raises(UserError, match="there is no searcher 'evolutoin': did you mean evolution"):
        part_class("searcher", "evolutoin")


# Parts of our own, for the syntax


@dataclass(frozen=True)
class Filling(Part):
    """A kind."""

    kind: ClassVar[str] = "filling"


@dataclass(frozen=True)
class Jam(Filling):
    """Options of every type."""

    name: ClassVar[str] = "jam"
    summary: ClassVar[str] = "for tests"

    sugar: int = option(3, "spoons")
    share: float | None = option(None, "of fruit")
    label: str = option("", "what it says")
    fruits: tuple[str, ...] = option((), "what is in it")
    sizes: tuple[int, ...] = option((1, 2), "of pieces")
    smooth: bool = option(False, "without pieces")
    kind_of: Literal["red", "black"] = option("red", "colour")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sugar > 100:
            raise UserError("too sweet: use at most 100")


@dataclass(frozen=True)
class Double(Filling):
    """A part with a part."""

    name: ClassVar[str] = "double"
    summary: ClassVar[str] = "for tests"

    lower: Filling = option(Jam(), "below")
    upper: Filling | None = option(None, "above")
    thickness: int = option(1, "millimetres")


@dataclass(frozen=True)
class Oven(Part):
    """Another kind."""

    kind: ClassVar[str] = "oven"


@dataclass(frozen=True)
class Gas(Oven):
    """A part that shares an option with a filling."""

    name: ClassVar[str] = "gas"
    summary: ClassVar[str] = "for tests"

    heat: int = option(200, "degrees")
    thickness: int = option(5, "of its walls")


@dataclass(frozen=True)
class BakeCake(Pass):
    """A pass with parts of two kinds."""

    name: ClassVar[str] = "cake"
    summary: ClassVar[str] = "for tests"

    filling: Filling = option(Jam(), "inside")
    baked_in: Oven = option(Gas(), "where")
    heat: int = option(100, "of the pass itself")
    glaze: Filling | None = option(None, "on top")

    def run(self, state: State) -> bool:
        return False


PARTS: dict[str, dict[str, type[Part]]] = {
    "filling": {"jam": Jam, "double": Double},
    "oven": {"gas": Gas},
}


@contextmanager
def opened() -> Iterator[None]:
    """The syntax knows the parts above and no others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_texts, "pass_names", lambda: ("cake",))
        patch.setattr(pipeline_texts, "pass_class", {"cake": BakeCake}.__getitem__)
        patch.setattr(spec, "part_names", lambda kind: tuple(PARTS[kind]))
        patch.setattr(spec, "part_class", lambda kind, name: PARTS[kind][name])
        yield


@pytest.fixture
def kitchen() -> Iterator[None]:
    with opened():
        yield


texts = st.text(
    st.sampled_from(list('ab{},="\\ \n\t:é%')) | st.characters(codec="utf-8"), max_size=8
)
jams = st.builds(
    Jam,
    sugar=st.integers(-5, 100),
    share=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    label=texts,
    fruits=st.lists(texts, max_size=3).map(tuple),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    smooth=st.booleans(),
    kind_of=st.sampled_from(["red", "black"]),
)
fillings = st.recursive(
    jams,
    lambda inner: st.builds(Double, lower=inner, upper=st.none() | inner, thickness=st.integers()),
    max_leaves=4,
)
cakes = st.builds(
    BakeCake,
    filling=fillings,
    baked_in=st.builds(Gas, heat=st.integers()),
    heat=st.integers(),
    glaze=st.none() | fillings,
)


@given(passes=st.lists(cakes, min_size=1, max_size=3))
def test_nested_parts_survive_the_way_through_text(passes: list[BakeCake]) -> None:
    text = pipeline_text(passes)
    with opened():
        assert parse_pipeline(text) == passes
        assert pipeline_text(parse_pipeline(text)) == text
        for item in passes:
            assert parse_part(Filling, pass_text(item.filling)) == item.filling


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cake{filling=jam}", BakeCake()),
        ("cake{filling=jam{}}", BakeCake()),
        ("cake{filling=jam{sugar=5 smooth}}", BakeCake(filling=Jam(sugar=5, smooth=True))),
        (
            "cake{filling=double{lower=double{lower=jam{sugar=1}}}}",
            BakeCake(filling=Double(Double(Jam(1)))),
        ),
        ("cake{filling=double{upper=none}}", BakeCake(filling=Double())),
        ("cake{glaze=jam{fruits=a,b fruits=c}}", BakeCake(glaze=Jam(fruits=("a", "b", "c")))),
        (
            'cake{filling="jam{sugar=5 fruits=\\"a b\\"}"}',
            BakeCake(filling=Jam(sugar=5, fruits=("a b",))),
        ),
        (
            'cake{filling="double{lower=\\"jam{sugar=5}\\"}"}',
            BakeCake(filling=Double(Jam(sugar=5))),
        ),
        ("cake{filling=jam{label=a,b{c d}=e}}", BakeCake(filling=Jam(label="a,b{c d}=e"))),
        # Options that only one part has may stand on the pass; the pass's own come first.
        ("cake{sugar=5}", BakeCake(filling=Jam(sugar=5))),
        ("cake{smooth sizes=1 sizes=3,4}", BakeCake(filling=Jam(smooth=True, sizes=(1, 3, 4)))),
        ("cake{sugar=5 filling=jam{smooth}}", BakeCake(filling=Jam(sugar=5, smooth=True))),
        ("cake{kind-of=black}", BakeCake(filling=Jam(kind_of="black"))),
        ("cake{heat=5}", BakeCake(heat=5)),
        ("cake{thickness=9}", BakeCake(baked_in=Gas(thickness=9))),
    ],
)
def test_ways_to_write_parts(kitchen: None, text: str, expected: Pass) -> None:
    assert parse_pipeline(text) == [expected]
    assert parse_pipeline(pipeline_text([expected])) == [expected]


@pytest.mark.parametrize(
    ("text", "column", "message", "note"),
    [
        ("cake{filling=jma}", 14, "there is no filling 'jma'", "did you mean jam?"),
        ("cake{filling=jam{sugra=1}}", 18, "jam has no option 'sugra'", "did you mean sugar?"),
        (
            "cake{filling=jam{sugar=x}}",
            24,
            "the option 'sugar' must be a whole number, not 'x'",
            "",
        ),
        (
            "cake{filling=jam{sugar=999}}",
            14,
            "jam: too sweet: use at most 100",
            "options are sugar (int)",
        ),
        (
            "cake{filling=jam{sugar=1 sugar=2}}",
            26,
            "the option 'sugar' is given twice",
            "it takes one value",
        ),
        ("cake{filling=jam{sizes=1,,2}}", 24, "the list of 'sizes' has an empty place", ""),
        (
            "cake{filling=jam{sizes=1,b}}",
            24,
            "the option 'sizes' must be a whole number, not 'b'",
            "",
        ),
        (
            "cake{filling=double{lower=jam{sugar=x}}}",
            37,
            "the option 'sugar' must be a whole number, not 'x'",
            "",
        ),
        ("cake{filling=double{lower=jma}}", 27, "there is no filling 'jma'", "did you mean jam?"),
        ("cake{filling=jam{sugar}}", 18, "the option 'sugar' needs a value: sugar=8", ""),
        ("cake{filling=gas}", 14, "there is no filling 'gas'", "known are double, jam"),
        ("cake{filling=none}", 14, "there is no filling 'none'", ""),
        ("cake{filling={sugar=1}}", 14, "expected the name of a filling, not '{'", ""),
        ("cake{baked-in={heat=1}}", 15, "expected the name of an oven, not '{'", ""),
        ("cake{filling=jam,double}", 17, "expected nothing more after jam, not ','", ""),
        ("cake{filling=jam{sugar=1}x}", 26, "expected nothing more after jam, not 'x'", ""),
        ("cake{filling=jam {sugar=1}}", 18, "expected an option of cake, not '{'", ""),
        ("cake{filling=jam{sugar=1}", 5, "this brace is never closed", "options end with '}'"),
        ("cake{filling=jam{sugar=1", 17, "this brace is never closed", ""),
        ("cake{filling}", 6, "the option 'filling' needs a value: filling=jam", ""),
        (
            "cake{filling=jam filling=double}",
            18,
            "the option 'filling' is given twice",
            "it takes one value",
        ),
        # On the pass.
        ("cake{sugra=1}", 6, "cake has no option 'sugra'", "filling takes sugar, share"),
        ("cake{sugar=x}", 12, "the option 'sugar' must be a whole number, not 'x'", ""),
        ("cake{smooth sugar=999}", 6, "jam: too sweet: use at most 100", ""),
        ("cake{sugar=1 sugar=2}", 14, "the option 'sugar' is given twice", "it takes one value"),
        (
            "cake{sugar=1 filling=jam{sugar=1}}",
            6,
            "the option 'sugar' is given twice",
            "it takes one value",
        ),
        ('cake{filling="jam{sugar=1}" sugar=2}', 29, "the option 'sugar' is given twice", ""),
        (
            "cake{filling=double thickness=3}",
            21,
            "both filling and baked-in have an option 'thickness'",
            "write filling=double{thickness=...}",
        ),
        (
            "cake{sugar=3 glaze=jam}",
            6,
            "both filling and glaze have an option 'sugar'",
            "write filling=jam{sugar=...}",
        ),
    ],
)
def test_mistakes_point_into_the_whole_text(
    kitchen: None, text: str, column: int, message: str, note: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_pipeline(text)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"pipeline:1:{column}: error: {message}"
    assert lines[1] == f"  {text}"
    assert lines[2].index("^") == column + 1
    assert note in (lines[3] if len(lines) > 3 else "")


def test_mistakes_in_quoted_parts_point_into_the_quotes(kitchen: None) -> None:
    with pytest.raises(
        UserError, match=r"^filling:1:5: error: jam has no option 'sugra'\n  jam\{sugra=1\}\n"
    ):
        parse_pipeline('cake{filling="jam{sugra=1}"}')
    with pytest.raises(UserError, match=r"pipeline:1:14: error: .* is not one quoted text"):
        parse_pipeline('cake{filling="jam"x}')


def test_a_narrower_class_of_parts() -> None:
    """A field may ask for some parts of a kind alone."""
    assert isinstance(parse_part(FreshStatistics, "finetune{epochs=2}"), FreshStatistics)
    with pytest.raises(
        UserError, match=r"^evaluator:1:1: error: the evaluator 'stale' does not fit here\n"
    ) as error:
        parse_part(FreshStatistics, "stale")
    note = str(error.value).splitlines()[-1]
    assert "those that do are abn, reference, finetune, pruning-net" in note
    assert "stale" not in note


# In Python


def test_text_stands_for_a_part_in_python() -> None:
    made = AdaptiveBN(searcher="evolution{population=20}", evaluator="stale")  # type: ignore[arg-type]
    assert made.searcher == Evolution(population=20)
    assert made.evaluator == StaleStatistics()
    assert made == AdaptiveBN(searcher=Evolution(population=20), evaluator=StaleStatistics())
    assert hash(made) == hash(
        AdaptiveBN(searcher=Evolution(population=20), evaluator=StaleStatistics())
    )
    assert Prune(criterion="taylor{batches=2}").criterion == Taylor(batches=2)  # type: ignore[arg-type]
    changed = dataclasses.replace(made, searcher="random")  # type: ignore[arg-type]
    assert changed.searcher == RandomSearch()
    with pytest.raises(UserError, match=r"^searcher:1:1: error: there is no searcher 'l1'"):
        AdaptiveBN(searcher="l1")  # type: ignore[arg-type]


def test_text_stands_for_an_optional_part(kitchen: None) -> None:
    assert BakeCake(glaze="jam{sugar=1}").glaze == Jam(1)  # type: ignore[arg-type]
    assert BakeCake(glaze=None).glaze is None


@pytest.mark.parametrize("wrong", [L1Norm(), RandomSearch, 3, None])
def test_a_part_of_the_wrong_kind(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"searcher must be a part of the kind searcher, not "):
        AdaptiveBN(searcher=wrong)


@dataclass(frozen=True)
class Odd(Filling):
    """Options that no text could set."""

    name: ClassVar[str] = "odd"
    summary: ClassVar[str] = "for tests"

    many: tuple[Filling, ...] = option((), "a list of parts")
    table: frozenset[int] = option(frozenset(), "no type for text")
    silent: int = 3


def test_options_that_no_text_can_set_are_found() -> None:
    assert list(check_options(Odd)) == ["many", "table", "silent"]


# As users write them


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("abn{candidates=50}", "abn{searcher=random{candidates=50}}"),
        ("abn{candidates=50 calibration-batches=3}", None),
        ("abn{searcher=evolution population=20}", "abn{searcher=evolution{population=20}}"),
        ("abn{evaluator=finetune{epochs=1}}", "abn{evaluator=finetune}"),
        ("abn{ranking=reward accuracy-base=70.6}", "abn{ranking=reward{accuracy-base=70.6}}"),
        ("prune{criterion=taylor batches=2}", "prune{criterion=taylor{batches=2}}"),
    ],
)
def test_flat_and_nested_are_the_same(text: str, canonical: str | None) -> None:
    passes = parse_pipeline(text)
    assert parse_pipeline(pipeline_text(passes)) == passes
    if canonical is not None:
        assert pipeline_text(passes) == canonical


def test_abns_options_are_explained() -> None:
    with pytest.raises(UserError) as error:
        parse_pipeline("abn{candidate=5}")
    note = str(error.value).splitlines()[-1]
    assert "searcher takes candidates, max-ratio" in note
    assert "evaluator takes subval-limit, batch-size" in note


def test_options_of_the_wrong_kind_in_python() -> None:
    with pytest.raises(
        UserError, match=r"budget must be a list, such as \['50%FLOPs'\], not the text '50%FLOPs'"
    ):
        Prune(budget="50%FLOPs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"ratios must be text or none, not 0\.5"):
        GReg1(ratios=0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ratio must be a number or none, not 'a'"):
        Slimming(ratio="a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="merge must be one of or, and, not 'xor'"):
        Slimming(merge="xor")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"passes must be a whole number, not 1\.5"):
        Slimming(passes=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lr must be a number, not nan"):
        SGD(lr=float("nan"))


def test_options_of_numpy_in_python() -> None:
    assert Slimming(ratio=np.float64(0.5), passes=np.int64(2)).passes == 2  # type: ignore[arg-type]
