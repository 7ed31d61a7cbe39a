"""The table of passes: lazy, open to plugins, closed to clashes."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.options import registry as parts
from pruneopt.passes.options.configured import Part, option
from pruneopt.passes.options.registry import merge, part_class, part_names, register_part
from pruneopt.passes.pipeline import registry
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import (
    GROUP,
    all_passes,
    pass_class,
    pass_names,
    register_pass,
)
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text
from pruneopt.passes.search.rankings.ranking import Measured, Ranking


def plugin(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_built_in_passes_load() -> None:
    assert set(pass_names()) >= {
        "couple",
        "cost",
        "prune",
        "uniform",
        "l1",
        "random",
        "slice",
        "verify",
        "finetune",
    }
    for name, kind in all_passes().items():
        assert issubclass(kind, Pass)
        assert kind.name == name


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UserError, match=r"there is no pass 'prnue': did you mean prune"):
        pass_class("prnue")


def test_names_are_known_without_loading_any_pass() -> None:
    code = (
        "import sys; from pruneopt.passes.pipeline.registry import pass_names; pass_names(); "
        "print([m for m in ('torch', 'pruneopt.passes.selection.prune') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plugins_join_the_table() -> None:
    assert merge({"a": "x:A"}, (plugin("b", "y:B"),)) == {"a": "x:A", "b": "y:B"}


def test_a_plugin_seen_twice_is_no_clash() -> None:
    assert merge({}, (plugin("b", "y:B"), plugin("b", "y:B"))) == {"b": "y:B"}


@pytest.mark.parametrize("built_in", [{"b": "x:B"}, {}])
def test_a_clash_names_both_origins(built_in: dict[str, str]) -> None:
    plugins = (plugin("b", "y:B"), plugin("b", "z:B")) if not built_in else (plugin("b", "y:B"),)
    with pytest.raises(UserError, match="two packages define a pass named 'b'") as caught:
        merge(built_in, plugins)
    assert ("pruneopt (x:B)" if built_in else "y:B") in str(caught.value)
    assert ("y:B" if built_in else "z:B") in str(caught.value)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("no_such_module_here:A", UserError, "repair or uninstall"),
        ("json:NoSuchClass", UserError, "repair or uninstall"),
        ("json:JSONDecoder", UserError, "is not a pass of that name"),
        ("pruneopt.passes.pipeline.base:Pass", UserError, "is not a pass of that name"),
        ("pruneopt.passes.pipeline.base:Nothing", InternalError, "cannot be loaded"),
    ],
)
def test_broken_plugins(
    monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(registry, "_table", lambda: {"odd": place})
    with pytest.raises(error, match=message):
        pass_class("odd")


def test_a_pass_cannot_have_an_odd_name() -> None:
    with pytest.raises(InternalError, match="names of passes and parts are kebab-case"):
        type("Odd", (Pass,), {"name": "Odd_Name"})


# Registered in the process, without an installed package


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing registered before, and nothing after."""
    monkeypatch.setattr(parts, "_registered", {})


def half_pass(name: str = "half") -> type[Pass]:
    @dataclass(frozen=True)
    class Half(Pass):
        summary: ClassVar[str] = "keep half of every group"
        step: int = option(1, "widths are multiples of this")

        def run(self, state: State) -> bool:
            return False

    Half.name = name
    return Half


def constant_ranking(name: str = "constant") -> type[Part]:
    @dataclass(frozen=True)
    class Constant(Ranking):
        summary: ClassVar[str] = "all alike"

        def fitness(self, measured: Measured) -> float:
            return 0.0

    Constant.name = name
    return Constant


@pytest.mark.usefixtures("fresh")
def test_a_registered_pass_is_one_like_any_other() -> None:
    half = half_pass()
    assert register_pass(half) is half, "so that it works as a decorator"
    assert pass_names()[-1] == "half"
    assert all_passes()["half"] is half
    (found,) = parse_pipeline("half{step=8}")
    assert (type(found), pipeline_text([found])) == (half, "half{step=8}")
    with pytest.raises(UserError, match="there is no pass 'hafl': did you mean half"):
        pass_class("hafl")


@pytest.mark.usefixtures("fresh")
def test_a_registered_part_is_an_option_of_passes() -> None:
    constant = register_part(constant_ranking())
    assert part_names("ranking")[-1] == "constant"
    assert "constant" not in part_names("criterion")
    assert part_class("ranking", "constant") is constant
    (found,) = parse_pipeline("abn{ranking=constant}")
    assert pipeline_text([found]) == "abn{ranking=constant}"


@pytest.mark.usefixtures("fresh")
def test_a_class_that_is_defined_again_takes_its_place() -> None:
    register_pass(half_pass())
    again = register_pass(half_pass())
    assert pass_class("half") is again


@pytest.mark.usefixtures("fresh")
def test_a_registered_name_that_is_taken() -> None:
    clash = r"two classes define a pass named 'l1': pruneopt\.passes\..*:L1 and .*:half_pass.*Half"
    with pytest.raises(UserError, match=clash):
        register_pass(half_pass("l1"))
    clash = r"two classes define a ranking named 'reward': .*:Reward and .*Constant; rename one"
    with pytest.raises(UserError, match=clash):
        register_part(constant_ranking("reward"))
    register_pass(half_pass("mine"))
    other = half_pass("mine")
    other.__qualname__ = "Other"
    with pytest.raises(UserError, match=r"named 'mine': .*half_pass.*Half and .*:Other"):
        register_pass(other)
    register_part(constant_ranking("mine"))  # passes and kinds of parts do not share names


@pytest.mark.usefixtures("fresh")
def test_what_cannot_be_registered() -> None:
    nameless = half_pass()
    del nameless.name
    incomplete: Any = type("Bare", (Pass,), {"name": "bare", "summary": "lacks run"})
    for wrong in (nameless, incomplete, constant_ranking(), dict, "l1"):
        with pytest.raises(UserError, match="cannot be registered: a pass is a subclass of Pass"):
            register_pass(wrong)  # type: ignore[type-var]
    bare: Any = type("Bare", (Ranking,), {"name": "bare", "summary": "lacks fitness"})
    for wrong in (bare, half_pass(), Part, dict):
        with pytest.raises(UserError, match=r"a part is a subclass of .* ranking, .* sets name"):
            register_part(wrong)  # type: ignore[type-var]
    silent: Any = type("Silent", (half_pass(),), {"name": "silent"})
    assert register_pass(silent) is silent, "the summary may come from a base"
    assert pass_names()[-1] == "silent", "nothing that was refused is left behind"
