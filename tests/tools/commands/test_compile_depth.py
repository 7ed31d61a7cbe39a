"""A bundle of a network that lost whole blocks and channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pruneopt.ir.capture.capture import capture
from pruneopt.models.digits_resnet import digits_resnet
from pruneopt.passes.analysis.residual.branches import find_branches
from pruneopt.passes.depth.drop_blocks import whole_cost

Call = Callable[..., Any]


def test_the_bundle_tells_what_was_dropped(call: Call, tmp_path: Path) -> None:
    graph = capture(digits_resnet().eval(), (torch.zeros(2, 1, 16, 16),))
    branch = find_branches(graph)[0]
    pipeline = (
        f"drop-blocks{{blocks={branch.name}}},couple,cost,l1{{round-to=auto:cpu-avx2}},slice,verify"
    )
    out = tmp_path / "out"
    done = call(
        "compile", "zoo:digits_resnet", "--pipeline", pipeline, "--budget", "40%FLOPs", "--out", out
    )
    assert done.code == 0, done.err
    assert f"note: dropped {branch.name}: " in done.out
    report = json.loads((out / "report.json").read_text())
    full = whole_cost(graph).original("flops")
    assert report["original"]["flops"] == full
    assert report["budgets"][0]["limit"] == 0.4 * full
    assert report["budgets"][0]["met"]
    assert report["pruned"]["flops"] == report["budgets"][0]["achieved"]
    record = report["records"]["drop-blocks"]
    assert [(block["name"], block["sum"]) for block in record["blocks"]] == [
        (branch.name, branch.add.result.name)
    ]
    assert report["records"]["round-to"]["target"] == "cpu-avx2"
    plan = json.loads((out / "plan.json").read_text())
    assert plan["dropped"] == {branch.name: branch.add.result.name}
    page = (out / "report.html").read_text()
    assert f"dropped {branch.name}: " in page
    name, multiple = next(iter(report["records"]["round-to"]["multiples"].items()))
    kept = next(group for group in report["groups"] if group["name"] == name)
    cells = "".join(
        f'<td class="number">{number}</td>' for number in (kept["width"], kept["kept"], multiple)
    )
    assert f'<td class="name">{name}</td>{cells}' in page
    whole = call(
        "compile",
        "zoo:digits_resnet",
        "--pass",
        f"plan{{file={out / 'plan.json'}}}",
        "--out",
        tmp_path / "b",
    )
    assert whole.code == 2
    assert f"drop-blocks{{blocks={branch.name}}}" in whole.err
