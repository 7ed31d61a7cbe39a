"""Bad input: one sentence that says what and where, the right exit code, and no traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pruneopt.models.source import load_model
from pruneopt.passes.analysis.cost.conventions import conventions
from pruneopt.tools.commands import inspect as inspect_command

Call = Callable[..., Any]
BUDGET = ("--budget", "50%FLOPs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["prune"], "invalid choice: 'prune'"),
        (["compile"], "required: MODEL"),
        (["compile", "MODEL", "--budgets", "50%FLOPs"], "unrecognized arguments: --budgets"),
        (["compile", "MODEL", "--seed", "-1", *BUDGET], "'-1' is not a whole number"),
        (["compile", "MODEL", "--input", "3xx3", *BUDGET], "'3xx3' is not a shape"),
        (["compile", "MODEL"], "nothing to aim at: give a budget"),
        (["compile", "MODEL", "--budget", "0%FLOPs"], "must be above 0"),
        (["compile", "MODEL", "--budget", "-5MFLOPs"], "must be above 0"),
        (["compile", "MODEL", "--budget", "900%FLOPs"], "9 times the cost of the original"),
        (["compile", "MODEL", "--budget", "1e400FLOPs"], "no finite number"),
        (["compile", "MODEL", "--budget", "half"], "not a number with a unit"),
        (["compile", "MODEL", "--budget", "5parsecs"], "unknown unit 'parsecs'"),
        (["compile", "MODEL", "--pass", "abm", *BUDGET], "there is no pass 'abm'"),
        (["compile", "MODEL", "--pass", "l1{rond-to=8}", *BUDGET], "did you mean round-to?"),
        (["compile", "MODEL", "--pass", "l1{round-to=eight}", *BUDGET], "must be a whole number"),
        (
            ["compile", "MODEL", "--pass", "l1{round-to=auto:tpu}", *BUDGET],
            "or one of auto, auto:cuda-fp16",
        ),
        (
            ["compile", "MODEL", "--round-to", "auto:tpu", *BUDGET],
            "round-to must be a whole number or one of auto",
        ),
        (["compile", "MODEL", "--pass", "l1,random", *BUDGET], "one pass that chooses channels"),
        (["compile", "MODEL", "--pass", "slice", *BUDGET], "one pass that chooses channels"),
        (
            ["compile", "MODEL", "--pipeline", "couple,cost,l1,slice", *BUDGET],
            "the pipeline lacks verify",
        ),
        (
            ["compile", "MODEL", "--pipeline", "couple,cost,slice,verify", *BUDGET],
            "no pass chooses channels",
        ),
        (["compile", "MODEL", "--device", "toaster", *BUDGET], "--device toaster cannot be used"),
        (["compile", "MODEL", "--device", "meta", *BUDGET], "--device meta cannot be used"),
        (["compile", "MODEL", "--data", "digitz", *BUDGET], "there is no data set 'digitz'"),
        (["compile", "MODEL", "--finetune-epochs", "3", *BUDGET], "finetune needs data"),
        (["compile", "MODEL", "--pass", "abn", *BUDGET], "abn needs data"),
        (["compile", "MODEL", "--ignore", "conv9", *BUDGET], "--ignore conv9"),
        (
            ["compile", "MODEL", "--width", "conv1", *BUDGET],
            "--width conv1: write a group and how many channels",
        ),
        (
            ["compile", "MODEL", "--width", "conv9=4", *BUDGET],
            "--width conv9: no parameter, module or channel group",
        ),
        (["compile", "MODEL", "--max-ratio", "1.5", *BUDGET], "--max-ratio 1.5: the largest share"),
        (
            ["compile", "MODEL", "--tie", "conv1,conv2", *BUDGET],
            "--tie conv1,conv2: groups that are equally wide",
        ),
        (["compile", "MODEL", "--input", "1x3x8x8", *BUDGET], "3 channels"),
        (["compile", "MODEL", "--resume", *BUDGET], "nothing to resume"),
        (["compile", "MODEL", "--resume", "--force", *BUDGET], "not allowed with"),
        (["compile", "missing.py", *BUDGET], "missing.py"),
        (["compile", "zoo:resnet2O", *BUDGET], "did you mean resnet32 or resnet20"),
        (["compile", "MODEL", "--weights", "missing.pt", *BUDGET], "missing.pt does not exist"),
        (["inspect", "MODEL", "--plan", "missing.json"], "missing.json"),
        (["passes", "nothing"], "there is no pass 'nothing'"),
        (["new", "model.txt"], "must end in .py"),
    ],
)
def test_bad_input(
    call: Call,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*(tiny if word == "MODEL" else word for word in words))
    assert done.code == 2
    assert said in done.sentence
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["tiny.py"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\nmodel = torch.nn.Linear(4, 2\ninput_shape = (2, 4)\n", "broken.py line 2"),
        ("import torch\n\nmodel = torch.nn.Linier(4, 2)\n", "broken.py line 3"),
        ("import torch\nmodel = torch.nn.Linear(4, 2)\n", "input_shape"),
        ("import torch\nmodel, input_shape = torch.nn.Linear(4, 2), (2, 5)\n", "4"),
    ],
    ids=["syntax", "runtime", "no-input", "shapes"],
)
def test_a_broken_file(call: Call, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    done = call("compile", path, *BUDGET, "--out", tmp_path / "o")
    assert done.code == 2
    assert said in done.sentence
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("fault", ["truncated", "nan", "other"])
def test_weights_that_cannot_be_used(call: Call, tiny: Path, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "weights.safetensors"
    state = {
        name: tensor.clone() for name, tensor in load_model(str(tiny)).module.state_dict().items()
    }
    said = {"truncated": "truncated", "nan": "'conv1.weight'", "other": "lacks"}[fault]
    if fault == "nan":
        state["conv1.weight"][0] = torch.nan
    if fault == "other":
        del state["conv1.weight"]
    save_file(state, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    done = call("compile", tiny, "--weights", path, *BUDGET, "--out", tmp_path / "o")
    assert done.code == 2
    assert said in done.sentence


@pytest.mark.parametrize(
    "words",
    [
        ["--budget", "1FLOPs"],
        ["--budget", "90%FLOPs", "--budget", "0.001%params"],
        ["--pass", "l1{budget=1FLOPs}"],
        ["--budget", "20%FLOPs", "--min-channels", "7"],
    ],
)
def test_a_budget_out_of_reach_is_told_before_any_work(
    call: Call, tiny: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> float:
        raise AssertionError("scored before the budget was checked")

    monkeypatch.setattr("pruneopt.models.workload.Workload.score", refuse)
    done = call("compile", tiny, "--data", "digits", *words, "--out", tmp_path / "o")
    assert done.code == 3
    assert "cannot be made smaller than " in done.sentence
    assert not (tmp_path / "o").exists()


def test_data_of_another_shape(call: Call, tiny: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "unused.pt")
    path = tmp_path / "arrays.npz"
    import numpy as np

    np.savez(path, x=np.zeros((100, 2, 5, 5), np.float32), y=np.arange(100) % 10)
    done = call("compile", tiny, "--data", f"npz:{path}", *BUDGET, "--out", tmp_path / "o")
    assert done.code == 2
    assert done.sentence


def test_the_command_itself_prints_no_traceback(command: Call, tmp_path: Path) -> None:
    done = command("compile", tmp_path / "missing.py", *BUDGET)
    assert (done.code, done.out) == (2, "")
    assert "missing.py" in done.sentence


def test_debug_shows_where(call: Call, tmp_path: Path) -> None:
    done = call("compile", tmp_path / "missing.py", *BUDGET, "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("pruneopt: ")


def test_an_error_of_ours_asks_for_a_report(
    call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr(inspect_command, "couple", fail)
    done = call("inspect", tiny)
    assert done.code == 1
    assert "please report it" in done.sentence
    assert "ZeroDivisionError: division by zero" in done.sentence


@pytest.mark.parametrize("name", [item.name for item in conventions()])
def test_every_convention_can_be_chosen(call: Call, tiny: Path, name: str) -> None:
    done = call("inspect", tiny, "--flops-convention", name, "--json")
    assert json.loads(done.out)["flops_convention"] == name


def test_an_unknown_convention_is_refused_with_the_known_ones(call: Call) -> None:
    done = call("inspect", "no_such_file.py", "--flops-convention", "odd")
    assert done.code == 2
    known = ", ".join(item.name for item in conventions())
    assert done.sentence == f"there is no FLOPs convention 'odd': known are {known}"
