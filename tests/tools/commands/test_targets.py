"""``pruneopt targets``: what is offered, and why the rest is not."""

import json
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch

from pruneopt.passes.targets.target import parse_target

Call = Callable[..., Any]


def test_targets_are_listed_with_versions_and_reasons(call: Call) -> None:
    done = call("targets")
    assert done.code == 0
    rows = dict(
        line.split("  ", 1) for line in done.out.splitlines() if line.startswith(("torch-", "ort-"))
    )
    assert rows["torch-cpu"].strip() == f"torch {torch.__version__}"
    assert rows["ort-cpu"].strip() == f"onnxruntime {onnxruntime.__version__}"
    assert {"torch-cpu{mode=compiled}", "torch-cuda{mode=graph}", "ort-tensorrt"} <= rows.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_json_tells_the_reasons(call: Call) -> None:
    found = {item["target"]: item for item in json.loads(call("targets", "--json").out)}
    assert found["ort-cpu"]["reason"] is None
    for name in ("torch-cuda", "torch-cuda{mode=graph}", "ort-cuda", "ort-tensorrt"):
        assert "no CUDA device" in found[name]["reason"]
        assert found[name]["runtime"] is None
    assert [str(parse_target(name)) for name in found] == list(found)
