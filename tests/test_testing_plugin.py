"""pruneopt.testing: snapshots are compared and written on request, and the assertions find what is
wrong."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from pruneopt.extend import Graph, Pass, PassManager, Result, State, capture
from pruneopt.testing import assert_pruned, assert_same_function

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "pruneopt.testing", "--rootdir", str(folder), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "snapshots").iterdir()}


def test_snapshots_are_compared_and_written_on_request(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import sys

import pytest

@pytest.mark.parametrize("size", [1])
def test_it(ir_snapshot, size):
    ir_snapshot("one\\ntwo\\nthree\\n")
    ir_snapshot("new", "words")
    ir_snapshot("1 2\\n", "table.txt")
    assert "torch" not in sys.modules
"""
    )
    expected = {"test_it-1.pir": "one\ntwo\nthree\n", "words.pir": "new\n", "table.txt": "1 2\n"}
    assert "no snapshot test_it-1.pir: run pytest with --snapshot-update" in run(tmp_path)
    assert not (tmp_path / "snapshots").exists()
    assert "1 passed" in run(tmp_path, "--snapshot-update")
    assert written(tmp_path) == expected
    assert "1 passed" in run(tmp_path)
    (tmp_path / "snapshots" / "test_it-1.pir").write_text("one\n2\nthree\n")
    output = run(tmp_path)
    assert "test_it-1.pir differs; --snapshot-update writes it anew" in output
    assert "\n-2\n+two\n" in output


def test_two_tests_do_not_share_a_snapshot_unnoticed(tmp_path: Path) -> None:
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text("def test_it(ir_snapshot):\n    ir_snapshot('same')\n")
    (tmp_path / "test_twice.py").write_text(
        "def test_twice(ir_snapshot):\n    ir_snapshot('a')\n    ir_snapshot('b')\n"
    )
    output = run(tmp_path, "--snapshot-update")
    assert "1 passed" in output
    assert "2 failed" in output
    assert "two snapshots would be called test_it.pir: give one of them a name" in output
    assert "two snapshots would be called test_twice.pir: give one of them a name" in output


def test_another_plugin_may_have_the_option(tmp_path: Path) -> None:
    """syrupy and pytest-snapshot have one of that name, with a name of its own inside."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.getgroup('other').addoption("
        "'--snapshot-update', action='store_true', dest='update_snapshots')\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it(ir_snapshot):\n    ir_snapshot('same')\n")
    assert "1 passed" in run(tmp_path, "--snapshot-update")
    assert written(tmp_path) == {"test_it.pir": "same\n"}


def test_the_entry_point_has_the_name_that_the_project_loads_it_by() -> None:
    """Under another name pytest would load the plugin twice."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {
        "pruneopt.testing": "pruneopt.testing"
    }
    addopts = settings["tool"]["pytest"]["ini_options"]["addopts"]
    assert addopts[addopts.index("-p") + 1] == "pruneopt.testing"


class Net(nn.Module):
    """Returns a dictionary: two convolutions, and a linear layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.drop, self.fc = nn.Dropout(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return {"features": x.mean((2, 3)), "logits": self.fc(self.drop(x.mean((2, 3))))}


INPUT = (2, 3, 8, 8)
PIPELINE = "couple,cost,prune{ratio=0.5 scope=local},slice"


def pruned(text: str = PIPELINE) -> tuple[Graph, Result]:
    graph = capture(Net(), torch.zeros(INPUT))
    return graph, PassManager.parse(text).run(graph)


# The same function


def test_a_network_is_the_same_function_as_its_graph() -> None:
    net = Net()
    graph = capture(net, torch.zeros(INPUT))
    assert_same_function(net, graph)
    assert_same_function(graph, net, torch.randn(INPUT))
    assert net.training, "the module's mode comes back"


def test_the_first_output_that_differs_is_named() -> None:
    net, other = Net(), Net()
    other.fc.bias.data[2] += 0.25
    with pytest.raises(AssertionError, match=r"output \['logits'\] is off by 0\.25, where"):
        assert_same_function(net, other, torch.randn(INPUT))
    assert_same_function(net, other, torch.randn(INPUT), tolerance=10.0)


def test_networks_that_part_at_another_batch_size() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x.reshape(INPUT))

    with pytest.raises(AssertionError, match=r"Fixed fails on inputs \[1, 3, 8, 8\]: RuntimeError"):
        assert_same_function(Net(), Fixed(), torch.randn(INPUT))
    # What the first does not take is not asked of the second.
    assert_same_function(Fixed(), Net(), torch.randn(INPUT))

    class OverBatch(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = super().forward(x)
            return {**out, "logits": out["logits"] * x.shape[0] / 2}

    with pytest.raises(AssertionError, match=r"differ on inputs \[1, 3, 8, 8\]: output \['logits'"):
        assert_same_function(Net(), OverBatch(), torch.randn(INPUT))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda out: (out["logits"],), "2 outputs against 1"),
        (
            lambda out: {**out, "logits": out["logits"].T},
            r"has the shape \[2, 5\] against \[",
        ),
    ],
)
def test_outputs_of_another_form(other: Callable[[dict[str, Tensor]], object], said: str) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            return other(super().forward(x))

    with pytest.raises(AssertionError, match=said):
        assert_same_function(Net(), Other(), torch.randn(INPUT))


def test_whole_numbers_must_be_equal() -> None:
    class Top(nn.Module):
        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1) + self.shift

    assert_same_function(Top(0), Top(0), torch.randn(4, 3))
    with pytest.raises(AssertionError, match="output 0 is off by 1, where 0 is allowed"):
        assert_same_function(Top(0), Top(1), torch.randn(4, 3), tolerance=100.0)


def test_two_modules_need_inputs() -> None:
    with pytest.raises(ValueError, match="two modules can only be compared on inputs"):
        assert_same_function(Net(), Net())


# Pruned


def test_a_pruned_network_passes() -> None:
    graph, result = pruned()
    assert_pruned(graph, result)
    assert_pruned(Net(), result)


def spoilt(result: Result, name: str, change: Callable[[Tensor], Tensor]) -> Result:
    graph = result.graph.copy()
    graph.weights[name] = change(graph.weights[name].clone())
    return replace(result, graph=graph)


def test_weights_that_are_not_the_originals() -> None:
    graph, result = pruned()
    other = spoilt(result, "conv2.weight", lambda weight: weight.flip(1))
    with pytest.raises(AssertionError, match=r"conv2\.weight of .*conv.* is not the original's"):
        assert_pruned(graph, other)
    assert_pruned(graph, result)


def test_a_network_with_another_op() -> None:
    graph, result = pruned()
    op = next(op for op in graph.ops if op.base == "relu")
    op.target = "aten.sigmoid.default"
    with pytest.raises(
        AssertionError, match=r"the original has .*sigmoid.* where the result has .*relu"
    ):
        assert_pruned(graph, result)


def test_channels_that_were_cut_in_the_wrong_places() -> None:
    """The plan says other units than those that were removed."""
    graph, result = pruned()
    assert result.plan is not None
    free = next(name for name, kept in result.plan.items() if len(kept) == 4)
    wrong = {**result.plan, free: sorted({*range(8)} - {*result.plan[free]})}
    with pytest.raises(AssertionError, match="is not the original's with channels removed"):
        assert_pruned(graph, replace(result, plan=wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("couple,cost", "the pipeline decided no plan"),
        ("couple,cost,uniform{budget=100%FLOPs},slice", "nothing was removed"),
    ],
)
def test_results_without_a_cut(text: str, said: str) -> None:
    graph, result = pruned(text)
    with pytest.raises(AssertionError, match=said):
        assert_pruned(graph, result)


def test_a_pass_that_does_more_than_cut() -> None:
    class Louder(Pass):
        name: ClassVar[str] = "louder"
        summary: ClassVar[str] = "double the last bias"

        def run(self, state: State) -> bool:
            state.graph.weights["fc.bias"] = 2 * state.graph.weights["fc.bias"]
            return True

    graph = capture(Net(), torch.zeros(INPUT))
    cut = PassManager.parse(PIPELINE).passes
    with pytest.raises(AssertionError, match=r"the weight fc\.bias of .* is not the original's"):
        assert_pruned(graph, PassManager([*cut, Louder()]).run(graph))


def test_a_graph_compares_with_its_text(ir_snapshot: Callable[..., None]) -> None:
    _, result = pruned()
    ir_snapshot(result)
