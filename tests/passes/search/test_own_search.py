"""The program of docs/abn.md, "The score in a search of your own", as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.transform.recalibrate import recalibrate_on

PAGE = Path(__file__).parents[3] / "docs" / "abn.md"


def programs() -> list[str]:
    """Return the page's programs, in order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_evaluation_scores_plans(
    trained: Graph, workload: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(
        programs()[0],
        {"graph": trained, "workload": workload, "coupling": couple(trained), "plans": [{}, {}]},
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.endswith("mean(reset=true) over 20 batches, 300 images")


def test_the_documented_program_gives_the_score_of_the_cut_network(
    trained: Graph, workload: Workload
) -> None:
    names: dict[str, Any] = {"graph": trained, "workload": workload}
    exec(programs()[1], names)
    cost, widths = names["cost"], names["widths"]
    assert {name: len(kept) for name, kept in names["plan"].items()} == dict(
        zip(cost.groups, widths, strict=True)
    )
    cut = slice_graph(trained, names["coupling"], names["plan"])
    module = build_module(cut, cut.weights)
    recalibrate_on(module, workload, batches=20, batch_size=64, seed=0)
    assert 0 < names["reward"] == pytest.approx(workload.score(module))
