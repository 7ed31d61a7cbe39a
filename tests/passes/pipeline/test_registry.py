"""The table of passes: lazy, open to plugins, closed to clashes."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.pipeline import registry
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import GROUP, all_passes, merge, pass_class, pass_names


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
