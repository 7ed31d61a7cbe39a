"""Pipeline strings: to passes and back, and every way to be wrong."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import option
from pruneopt.passes.options.spec import check_options
from pruneopt.passes.pipeline import text as pipeline_texts
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import all_passes
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text


@dataclass(frozen=True)
class Bake(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "bake"
    summary: ClassVar[str] = "for tests"

    heat: int = option(200, "degrees")
    time: float = option(1.5, "hours")
    fan: bool = option(False, "moving air")
    recipe: str = option("", "which")
    kind: Literal["bread", "cake"] = option("bread", "what")
    budget: tuple[str, ...] = option((), "limits")
    layers: tuple[int, ...] = option((1, 2), "sizes")
    limit: float | None = option(None, "at most")

    def __post_init__(self) -> None:
        if self.heat > 300:
            raise UserError("too hot: use at most 300")

    def run(self, state: State) -> bool:
        return False


@dataclass(frozen=True)
class Serve(Pass):
    """A pass with a required option, and a long name."""

    name: ClassVar[str] = "serve-up"
    summary: ClassVar[str] = "for tests"

    plates_wide: int

    def run(self, state: State) -> bool:
        return False


@dataclass(frozen=True)
class Rest(Pass):
    """A pass without options."""

    name: ClassVar[str] = "rest"
    summary: ClassVar[str] = "for tests"

    def run(self, state: State) -> bool:
        return False


KINDS: dict[str, type[Pass]] = {kind.name: kind for kind in (Bake, Serve, Rest)}


@pytest.fixture(autouse=True)
def kitchen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_texts, "pass_names", lambda: tuple(KINDS))
    monkeypatch.setattr(pipeline_texts, "pass_class", KINDS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bake", [Bake()]),
        (" bake , rest ", [Bake(), Rest()]),
        ("bake{}", [Bake()]),
        ("bake{ heat=100\n time=2 }", [Bake(heat=100, time=2.0)]),
        ("bake{time=1e-3}", [Bake(time=0.001)]),
        ("bake{heat=-5}", [Bake(heat=-5)]),
        ("bake{fan}", [Bake(fan=True)]),
        ("bake{fan=true}", [Bake(fan=True)]),
        ("bake{fan=false}", [Bake()]),
        ("bake{kind=cake}", [Bake(kind="cake")]),
        ("bake{budget=50%FLOPs}", [Bake(budget=("50%FLOPs",))]),
        ("bake{budget=50%FLOPs budget=4ms}", [Bake(budget=("50%FLOPs", "4ms"))]),
        ("bake{budget=50%FLOPs,4ms budget=1MB}", [Bake(budget=("50%FLOPs", "4ms", "1MB"))]),
        ("bake{budget=4ms@ort-cpu{threads=2}}", [Bake(budget=("4ms@ort-cpu{threads=2}",))]),
        (
            "bake{budget=4ms@a{b=2 c={d,e}},1MB fan}",
            [Bake(budget=("4ms@a{b=2 c={d,e}}", "1MB"), fan=True)],
        ),
        ("bake{recipe=a,b=c}", [Bake(recipe="a,b=c")]),
        ('bake{recipe="two words}"}', [Bake(recipe="two words}")]),
        ('bake{budget="a,b",c}', [Bake(budget=("a,b", "c"))]),
        (r'bake{recipe="a\"b"}', [Bake(recipe='a"b')]),
        ("bake{layers=3}", [Bake(layers=(3,))]),
        ("bake{layers=3,4,5}", [Bake(layers=(3, 4, 5))]),
        ("bake{layers=none}", [Bake(layers=())]),
        ("bake{limit=3}", [Bake(limit=3.0)]),
        ("bake{limit=none}", [Bake()]),
        ("serve-up{plates-wide=3}", [Serve(3)]),
        ("rest,rest", [Rest(), Rest()]),
    ],
)
def test_parses_and_prints_back(text: str, expected: list[Pass]) -> None:
    passes = parse_pipeline(text)
    assert passes == expected
    assert parse_pipeline(pipeline_text(passes)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "bake",
        "bake{heat=100 time=2.0 fan kind=cake budget=50%FLOPs budget=4ms@ort-cpu{threads=2} "
        "layers=3 limit=0.5},rest",
        "serve-up{plates-wide=3},bake{layers=none}",
        'bake{recipe="a b" budget="x,y" budget="{"}',
        'bake{recipe="none"}',
    ],
)
def test_canonical_text_prints_as_itself(text: str) -> None:
    assert pipeline_text(parse_pipeline(text)) == text


@pytest.mark.parametrize(
    ("text", "column", "message", "note"),
    [
        ("", 1, "a pass is missing here", "passes are bake, serve-up, rest"),
        ("rest,", 6, "a pass is missing here", "passes are"),
        ("rest,,rest", 6, "a pass is missing here", "passes are"),
        ("{heat=1}", 1, "expected the name of a pass, not '{'", "passes are"),
        ("bkae", 1, "there is no pass 'bkae'", "did you mean bake?"),
        ("rest,Bake", 6, "there is no pass 'Bake'", "did you mean bake?"),
        ("zzz", 1, "there is no pass 'zzz'", "known are bake, rest, serve-up"),
        ("rest rest", 6, "expected ',' or the end after the pass rest, not 'r'", ""),
        ("bake}", 5, "expected ',' or the end after the pass bake, not '}'", ""),
        (
            "bake{het=1}",
            6,
            "bake has no option 'het'",
            "did you mean heat? options are heat (int), time (float)",
        ),
        ("bake{Zz=1}", 6, "bake has no option 'Zz'", "options are heat (int)"),
        ("rest{a=1}", 6, "rest has no option 'a'", "rest takes no options"),
        (
            "serve-up{plates_wide=1}",
            10,
            "serve-up has no option 'plates_wide'",
            "did you mean plates-wide?",
        ),
        ("bake{heat=hot}", 11, "the option 'heat' must be a whole number, not 'hot'", ""),
        ("bake{heat=1.5}", 11, "the option 'heat' must be a whole number, not '1.5'", ""),
        ("bake{time=long}", 11, "the option 'time' must be a number, not 'long'", ""),
        ("bake{time=nan}", 11, "the option 'time' must be a number, not 'nan'", ""),
        ("bake{fan=yes}", 10, "the option 'fan' must be true or false, not 'yes'", ""),
        ("bake{kind=pie}", 11, "the option 'kind' must be one of bread, cake, not 'pie'", ""),
        ("bake{layers=1,x}", 13, "the option 'layers' must be a whole number, not 'x'", ""),
        ("bake{layers=1,,2}", 13, "the list of 'layers' has an empty place", ""),
        ("bake{heat}", 6, "the option 'heat' needs a value: heat=8", ""),
        ("bake{budget}", 6, "the option 'budget' needs a value: budget=...", ""),
        ("bake{kind}", 6, "the option 'kind' needs a value: kind=bread", ""),
        ("bake{heat=}", 6, "the option 'heat' has no value behind '='", ""),
        ("bake{heat= 5}", 6, "the option 'heat' has no value behind '='", ""),
        ("bake{heat=1 heat=2}", 13, "the option 'heat' is given twice", "it takes one value"),
        ("bake{=1}", 6, "expected an option of bake, not '='", "options are written key=value"),
        ("bake{heat=1,fan}", 11, "the option 'heat' must be a whole number, not '1,fan'", ""),
        ("bake{heat=1", 5, "this brace is never closed", "options end with '}'"),
        ("bake{", 5, "this brace is never closed", "options end with '}'"),
        ("bake{budget=4ms{a}", 5, "this brace is never closed", "options end with '}'"),
        ("bake{budget=4ms{a", 16, "this brace is never closed", ""),
        ('bake{recipe="a}', 13, "this quote is never closed", ""),
        ('bake{recipe="a"b}', 13, '"a"b is not one quoted text', ""),
        ("serve-up", 1, "serve-up needs the option 'plates-wide'", "plates-wide (int, required)"),
        ("rest,bake{heat=999}", 6, "bake: too hot: use at most 300", "options are"),
    ],
)
def test_mistakes_point(text: str, column: int, message: str, note: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pipeline(text)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"pipeline:1:{column}: error: {message}"
    assert lines[1] == f"  {text}"
    assert lines[2].index("^") == column + 1
    if note:
        assert lines[3].startswith("  note: ")
        assert note in lines[3]
    else:
        assert len(lines) == 3


def test_the_whole_message() -> None:
    with pytest.raises(UserError) as caught:
        parse_pipeline("rest,serve-up{plats-wide=3}")
    assert str(caught.value).splitlines() == [
        "pipeline:1:15: error: serve-up has no option 'plats-wide'",
        "  rest,serve-up{plats-wide=3}",
        "                ^^^^^^^^^^",
        "  note: did you mean plates-wide? options are plates-wide (int, required)",
    ]


def test_mistakes_on_a_later_line() -> None:
    with pytest.raises(
        UserError, match=r"^pipeline:2:3: error: there is no pass 'nap'\n    nap,\n    \^\^\^\n"
    ):
        parse_pipeline("rest,\n  nap,\nrest")


@pytest.mark.parametrize("name", list(all_passes()))
def test_every_pass_can_be_written(name: str) -> None:
    kind = all_passes()[name]
    assert kind.name == name
    assert kind.summary
    assert kind.__doc__
    assert list(check_options(kind)) == []
