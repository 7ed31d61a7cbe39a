"""The demo, as `make demo` runs it: twice, the second time on the weights of the first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pruneopt.tools.demo"]
    first = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    second = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Training zoo:digits_resnet" in first.stdout
    assert "Trained weights are in " in second.stdout
    report = json.loads((tmp_path / "runs" / "demo" / "report.json").read_text(encoding="utf-8"))
    scores = {item["after"]: item["score"] for item in report["scores"]}
    assert scores["original"] > 0.95
    assert scores["recalibrate"] > 0.9
    assert scores["finetune"] > 0.95
    assert "runs/demo/report.html" in second.stdout
