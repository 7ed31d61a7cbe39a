"""One report as text, as a page and as JSON: all that a compile can have to say, by hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pruneopt.passes.latency.deliver import Delivered
from pruneopt.passes.regularised.growing import GrowingReport, LayerReport
from pruneopt.passes.repair.bias import BiasShift
from pruneopt.passes.repair.lstsq import LayerFit
from pruneopt.passes.repair.repair import RepairReport
from pruneopt.passes.selection.masks import LayerSparsity
from pruneopt.passes.selection.rounding import Rounding
from pruneopt.tools.bundle.checks import Check
from pruneopt.tools.report.report import (
    BudgetResult,
    GroupResult,
    LatencyResult,
    Proof,
    Report,
    Score,
    SparsityResult,
)
from pruneopt.tools.report.sections import html_report, report_lines


@dataclass
class Search:
    """The record of a pass that searched under a growing penalty."""

    ranked_by: str
    regulariser: GrowingReport
    winner: str = "3"


SEARCH = Search(
    "accuracy", GrowingReport("done", 40, 90, (LayerReport("conv", 8, 3, 0.5, 2.25, 1200),))
)
FIRST = Delivered("ort-cpu", 2e-3, 4e-3, 1.9e-3, 4e-3, 2.5e-3, 2.4e-3, 2.6e-3, None)
SECOND = replace(FIRST, measured=1.5e-3, low=1.4e-3, high=1.6e-3, noisy="another process ran")
REPORT = Report(
    model="net.py",
    pass_="l1",
    pipeline="couple,cost,l1,slice,verify",
    interrupted=False,
    budgets=[
        BudgetResult("50%FLOPs", "flops", 500, 480, 1000, True),
        BudgetResult("10%params", "params", 20, 30, 200, False),
    ],
    flops_convention="macs",
    original={"flops": 1000, "params": 200, "bytes": 800, "memory": 4096, "accuracy": 0.9},
    pruned={"flops": 480, "params": 60, "bytes": 240, "memory": 2048, "accuracy": 0.875},
    metric="accuracy",
    scores=[Score("original", 0.9), Score("slice", 0.5), Score("own", 0.875)],
    verification=Proof(
        1e-15, 3.0, True, ("softmax <x>",), 2e-7, (Check("model.py", (1, 3), 0, 1),)
    ),
    groups=[
        GroupResult("conv", 8, 5, None),
        GroupResult("head", 10, 10, "model output"),
        GroupResult("side", 4, 4, "model output"),
    ],
    seconds={"load": 0.5, "l1": 65.0},
    notes=["a < b"],
    sparsity=SparsityResult(100, 25, 0.25, 35, (LayerSparsity("conv", 100, 25),)),
    reached="one channel step",
    records={
        "repair-bias": RepairReport("bias", 16, (BiasShift("conv", 0.125, "norm.bias"),)),
        "repair-lstsq": RepairReport("lstsq", 16, (LayerFit("head", 0.5, 0.25),)),
        "round-to": Rounding("cpu-avx512", "blocks of 16", {"conv": 4}),
    },
    search=None,
    latency=LatencyResult([[FIRST], [SECOND]], {"ort-cpu": 1.25}),
    artefacts={"model.py": {"sha256": "0123456789abcdef" * 4, "bytes": 2048}},
)


def test_text() -> None:
    lines = "\n".join(report_lines(REPORT)).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[: lines.index("")]]
    assert rows[0] == ["before", "after", "left"]
    assert rows[2:] == [
        ["FLOPs", "1 kFLOPs", "480 FLOPs", "48.0 %"],
        ["parameters", "200 params", "60 params", "30.0 %"],
        ["weights", "800 B", "240 B", "30.0 %"],
        ["peak memory", "4.10 kB", "2.05 kB", "50.0 %"],
        ["ort-cpu measured", "4 ms", "1.50 ms", "37.5 %"],
        ["ort-cpu predicted", "4 ms", "1.90 ms", "47.5 %"],
        ["accuracy pruned", "90.0 %", "50.0 %"],
        ["accuracy after own", "90.0 %", "87.5 %"],
    ]
    assert lines[lines.index("") + 1 :] == [
        "note: a < b",
        "note: the budget is not used to 99 %, but one more channel of any group would exceed it",
        "A FLOP is one multiply-accumulate, batch 1.",
        "On ort-cpu the median lies between 1.40 ms and 1.60 ms (95 %); another process ran.",
        "The first 1 of 2 networks missed a budget on a target, and corrected the predictions.",
        "Sparsity: 25.00 % of the 100 params of convolutions and linear layers are zero "
        "(35 params are not, in all); masks.safetensors says which.",
        "Zeros change no shape: sizes, FLOPs and memory are those of the dense network.",
        "Proved in float64: the original with channels removed, off by at most 1.0e-15 (outputs up "
        "to 3), and off by at most 2.0e-07 on real input in float32.",
        "Not equivalent by construction in one place, where statistics run over channels; the "
        "reports name them.",
        "equivalent but for 1 operation whose statistic runs over removed channels; "
        "50%FLOPs met with 0.480 kFLOPs (48.0 % of 1); "
        "10%params NOT met with 30 params (15.0 % of 200) not zero; "
        "verified, and model.py loaded back equal",
    ]


def test_page() -> None:
    page = html_report(replace(REPORT, search=SEARCH))
    assert re.findall("<h2>(.*?)</h2>", page) == [
        *("Budgets", "Before and after", "Time on targets", "Sparsity", "Accuracy", "Repair"),
        *(
            "Search",
            "Growing penalty",
            "Channel groups",
            "What stays whole, and why",
        ),
        *("Verification", "Time", "Files"),
    ]
    rows = [
        tuple(re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", row))
        for row in re.findall("<tr>(.*?)</tr>", page)
    ]
    for row in (
        ("10%params", "20 params", "30 params (15.0 % of 200) not zero", "not met"),
        ("ort-cpu", "1", "2 ms", "1.90 ms", "2.50 ms"),
        ("ort-cpu", "2", "2 ms", "1.90 ms", "1.50 ms"),
        ("conv", "100", "25", "25.00 %", ""),
        ("own", "87.50 %"),
        ("bias", "conv", "", "0.125 to norm.bias"),
        ("lstsq", "head", "0.5000", "0.2500"),
        ("ranked by", "accuracy"),
        ("conv", "8", "3", "0.5", "2.25", "1,200"),
        ("conv", "8", "5", "4", ""),
        ("model output", "head, side", "14"),
        ("model.py loaded back", "1, 3", "0.00e+00"),
        ("l1", "1 min 5 s"),
        ("model.py", "0123456789abcdef...", "2.05 kB"),
    ):
        assert row in rows
    assert "<p>a &lt; b</p>" in page
    assert "softmax &lt;x&gt;" in page


@pytest.mark.parametrize(
    ("equivalent", "notes", "words", "colour"),
    [
        (True, (), "equivalent", "verdict"),
        (
            True,
            ("softmax", "mean"),
            "equivalent but for 2 operations whose statistic runs over removed channels",
            "verdict stopped",
        ),
        (False, (), "not proved", "verdict stopped"),
        (False, ("softmax",), "not proved", "verdict stopped"),
    ],
)
def test_headline(equivalent: bool, notes: tuple[str, ...], words: str, colour: str) -> None:
    """On the terminal, on the page and as data; and green for nothing less than equivalent."""
    proof = replace(REPORT.verification, equivalent=equivalent, notes=notes)
    report = replace(REPORT, verification=proof)
    assert report.data()["equivalence"] == words
    *_, line = report_lines(report)
    assert line.startswith(f"{words}; 50%FLOPs met")
    assert ("verified" in line) == equivalent
    assert f'<p class="{colour}">{words}; ' in html_report(report)


def test_json() -> None:
    data: dict[str, Any] = REPORT.data()
    assert json.loads(json.dumps(data)) == data
    assert data["pass"] == "l1"
    assert data["budgets"][1]["met"] is False
    assert data["verification"]["artefacts"][0]["artefact"] == "model.py"
    assert data["latency"]["targets"] == data["latency"]["rounds"][1]
    assert [items[0]["met"] for items in data["latency"]["rounds"]] == [False, True]
    assert data["records"]["round-to"]["multiples"] == {"conv": 4}
    assert "search" not in data


def test_json_of_a_search() -> None:
    found = replace(REPORT, search=SEARCH).data()["search"]
    assert list(found) == ["ranked_by", "regulariser", "winner", "winning_finalist"]
    assert (found["winner"], found["winning_finalist"]) == ("3", None)
    text = replace(REPORT, search="by hand").data()["search"]
    assert text == {"record": "by hand", "winner": None, "winning_finalist": None}


def test_json_leaves_out_what_there_is_not() -> None:
    bare = replace(REPORT, sparsity=None, reached=None, latency=None, metric=None, scores=[])
    data = bare.data()
    assert not {"sparsity", "reached", "latency"} & data.keys()
    assert data["metric"] is None
    assert "Time on targets" not in html_report(bare)
