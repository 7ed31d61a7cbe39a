"""The pass manager: order, checks, failures that name the pass, instruments."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from pruneopt.errors import InternalError, UserError, VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.types import TensorType
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.manager import PassManager
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import DumpDir, Instrument, PrintAfter, Timing
from pruneopt.passes.pipeline.state import State


@dataclass(frozen=True)
class Probe(Pass):
    """Does one thing to the graph."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "for tests"

    act: str = option("", "what to do")
    says: bool = option(False, "what to claim")

    def requires(self, state: State) -> str | None:
        return "run the other one first" if self.act == "unready" else None

    def run(self, state: State) -> bool:
        if self.act == "rename":
            state.graph.name = "other"
        elif self.act == "weights":
            state.graph.weights = {
                name: tensor.clone() for name, tensor in state.graph.weights.items()
            }
        elif self.act == "break":
            graph = state.graph
            graph.set_type(graph.ops[0].result, graph.inputs[0].type)
        elif self.act == "user":
            raise UserError("mend this")
        elif self.act == "proof":
            raise VerificationError("not the same")
        elif self.act == "bug":
            raise ZeroDivisionError("oops")
        return self.says


@pytest.fixture
def graph() -> Graph:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return capture(model.eval(), (torch.randn(2, 3),))


def test_the_users_graph_stays_as_it_was(graph: Graph) -> None:
    before = print_graph(graph)
    result = PassManager([Probe("rename", says=True)]).run(graph)
    assert print_graph(graph) == before
    assert result.graph.name == "other"


@pytest.mark.parametrize("act", ["rename", "weights"])
def test_a_dishonest_pass_is_caught(graph: Graph, act: str) -> None:
    with pytest.raises(
        InternalError, match="probe says it changed nothing, but the graph is another one"
    ):
        PassManager([Probe(act)]).run(graph)
    PassManager([Probe(act)], verify_ir=False).run(graph)
    PassManager([Probe(act, says=True)]).run(graph)


def test_a_broken_graph_is_caught_after_the_pass_that_broke_it(graph: Graph) -> None:
    with pytest.raises(
        InternalError, match=r"the pass probe \(after probe\) failed: IRError"
    ) as caught:
        PassManager([Probe(), Probe("break", says=True), Probe()]).run(graph)
    assert caught.value.__cause__ is not None


def test_a_broken_input_is_caught_before_any_pass(graph: Graph) -> None:
    graph.set_type(graph.ops[0].result, graph.inputs[0].type)
    with pytest.raises(InternalError):
        PassManager([Probe("user")]).run(graph)


def test_a_failing_pass_is_named_with_those_before_it(graph: Graph) -> None:
    with pytest.raises(InternalError) as caught:
        PassManager([Probe(), Probe("rename", says=True), Probe("bug")]).run(graph)
    assert (
        str(caught.value) == "the pass probe (after probe, probe) failed: ZeroDivisionError: oops"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(InternalError, match=r"the pass probe \(the first pass\) failed"):
        PassManager([Probe("bug")]).run(graph)


@pytest.mark.parametrize(("act", "kind"), [("user", UserError), ("proof", VerificationError)])
def test_errors_made_for_the_user_pass_through(
    graph: Graph, act: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        PassManager([Probe(act)]).run(graph)
    assert type(caught.value) is kind
    assert "probe" not in str(caught.value)


def test_what_a_pass_requires(graph: Graph) -> None:
    with pytest.raises(UserError, match="probe cannot run here: run the other one first"):
        PassManager([Probe("unready")]).run(graph)


def test_pipelines_are_text(graph: Graph) -> None:
    manager = PassManager.parse("couple,cost,prune{budget=50%FLOPs round-to=2},slice,verify")
    assert str(manager) == "couple,cost,prune{budget=50%FLOPs round-to=2},slice,verify"
    with pytest.raises(UserError, match="pipeline:1:8: error"):
        PassManager.parse("couple,cots")


def test_no_passes_give_the_network_back(graph: Graph) -> None:
    result = PassManager([]).run(graph, budgets=["50%FLOPs", parse_budget("1MB")])
    x = torch.randn(5, 3)
    assert result.module(x).shape == (5, 2)
    assert result.module is result.module
    assert (result.plan, result.coupling, result.verification, result.budgets) == (
        None,
        None,
        None,
        (),
    )


# Instruments


class Log(Instrument):
    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        self.lines.append(f"{self.name} before {index} {step.name}")

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        self.lines.append(f"{self.name} after {index} {step.name}")


def test_instruments_nest(graph: Graph) -> None:
    lines: list[str] = []
    PassManager([Probe()], instruments=[Log("a", lines), Log("b", lines)]).run(graph)
    assert lines == ["a before 1 probe", "b before 1 probe", "b after 1 probe", "a after 1 probe"]


def test_timing_numbers_repeated_passes(graph: Graph) -> None:
    result = PassManager([Probe(), Probe(), Probe()]).run(graph)
    assert list(result.timings) == ["probe", "probe.2", "probe.3"]
    assert all(seconds >= 0 for seconds in result.timings.values())


def test_what_instruments_do_is_not_timed(graph: Graph) -> None:
    class Late(Instrument):
        timed = False

        def after_pass(self, index: int, step: Pass, state: State) -> None:
            self.timed = "probe" in state.timings

    late = Late()
    PassManager([Probe()], instruments=[late]).run(graph)
    assert late.timed


def test_timing_measures(graph: Graph) -> None:
    ticks = iter([1.0, 3.5])
    timing, state = Timing(lambda: next(ticks)), State(graph, graph)
    timing.before_pass(1, Probe(), state)
    timing.after_pass(1, Probe(), state)
    assert state.timings == {"probe": 2.5}


@pytest.mark.parametrize(("names", "count"), [(None, 2), (["couple"], 1), ([], 0)])
def test_print_after(graph: Graph, names: list[str] | None, count: int) -> None:
    lines: list[str] = []
    PassManager.parse("couple,cost", instruments=[PrintAfter(names, lines.append)]).run(graph)
    assert len(lines) == count
    if count:
        assert lines[0].startswith("// after 1 couple\ngraph @")


def test_dump_leaves_numbered_files_that_parse(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    pipeline = "couple,cost,l1{budget=60%FLOPs},slice"
    PassManager.parse(pipeline, instruments=[DumpDir(folder)]).run(graph)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "000_input.pir",
        "001_couple.pir",
        "002_cost.pir",
        "003_l1.pir",
        "004_slice.pir",
    ]
    assert (folder / "000_input.pir").read_text() == print_graph(graph)
    for path in folder.iterdir():
        text = path.read_text()
        assert print_graph(parse_graph(text)) == text


def test_a_folder_that_cannot_be_made(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        PassManager([Probe()], instruments=[DumpDir(tmp_path / "file" / "dump")]).run(graph)


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("0.weight", float("nan"), r"0\.weight, read by aten\.conv2d .*, holds 1 NaN or infinite"),
        ("0.bias", float("inf"), r"0\.bias, .* holds 1 NaN or infinite values of 4"),
        ("1.running_mean", -float("inf"), r"1\.running_mean, .* holds 1 NaN"),
        ("1.running_var", float("nan"), r"1\.running_var, .* holds 1 NaN"),
        ("1.running_var", -1.0, r"1\.running_var, read by aten\.batch_norm .*, holds -1"),
    ],
)
def test_weights_that_make_no_numbers_are_named_before_work_starts(
    name: str, number: float, words: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model.state_dict()[name].view(-1)[0] = number
    graph = capture(model.eval(), (torch.randn(2, 3, 4, 4),), check=False)
    with pytest.raises(UserError, match=words):
        PassManager([Probe(act="bug")]).run(graph)


def test_a_mask_may_be_infinite_and_a_variance_rounded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model.state_dict()["1.running_var"][0] = -1e-9
    graph = capture(model.eval(), (torch.randn(2, 3, 4, 4),))
    value = graph.add_param("mask", TensorType("f32", (2,)), "buffer")
    graph.weights[value.name] = torch.tensor([0.0, -float("inf")])
    PassManager([Probe()], verify_ir=False).run(graph)  # no op reads the mask
