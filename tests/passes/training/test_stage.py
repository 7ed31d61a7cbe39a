"""Training as a step of a pipeline: weights go into the graph, states into the run's folder, notes
into the record."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.workloads import workload_of
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import Workload, seeded
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.stage import train_state
from pruneopt.passes.training.trainer import train

RECIPE = SGD(epochs=2, lr=0.1, batch_size=128)
CUT = "couple,cost,l1{budget=40%FLOPs},slice"


@pytest.fixture(scope="module")
def digits() -> Workload:
    return load_data("digits", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="module")
def trained(digits: Workload) -> Graph:
    with seeded(0):
        network = DigitsResNet((6, 8, 12))
    train(network, digits, SGD(epochs=4, lr=0.1, batch_size=64))
    return capture(network, (torch.zeros(2, 1, 8, 8),))


def state_of(graph: Graph, workload: Workload, **fields: Any) -> State:
    return State(original=graph, graph=graph.copy(), workload=workload, **fields)


def test_the_weights_go_back(trained: Graph, digits: Workload) -> None:
    """They are those of `train` on the module of the graph, under the graph's names."""

    class Names(Hook):
        def start(self, run: TrainingRun) -> None:
            self.names = {name for name, _ in run.module.named_parameters()}

    state, hook = state_of(trained, digits, seed=3), Names()
    before = dict(trained.weights)
    log = train_state(state, RECIPE, name="sparse", hooks=[hook])
    module = build_module(trained, trained.weights)
    train(module, digits, RECIPE, seed=3)
    assert log.steps == 16
    assert hook.names <= set(state.graph.weights)
    wanted = module.state_dict()
    assert all(torch.equal(state.graph.weights[name], tensor) for name, tensor in wanted.items())
    assert not torch.equal(state.graph.weights["conv1.weight"], before["conv1.weight"])
    assert all(trained.weights[name] is tensor for name, tensor in before.items())
    assert not state.trained_after_slice


def test_states_in_the_run_folder(trained: Graph, digits: Workload, tmp_path: Path) -> None:
    first = state_of(trained, digits, run_dir=tmp_path)
    train_state(first, RECIPE, name="sparse", identity="sparse{strength=1}")
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.ckpt"]
    again = state_of(trained, digits, run_dir=tmp_path)
    log = train_state(again, RECIPE, name="sparse", identity="sparse{strength=1}")
    assert log.steps == 16
    assert all(
        torch.equal(tensor, first.graph.weights[name])
        for name, tensor in again.graph.weights.items()
    )
    with pytest.raises(
        UserError, match=r"options 'sparse\{strength=1\}' there, 'sparse\{strength=2\}' here"
    ):
        train_state(
            state_of(trained, digits, run_dir=tmp_path),
            RECIPE,
            name="sparse",
            identity="sparse{strength=2}",
        )


def test_a_pipeline_that_stops_goes_on(trained: Graph, digits: Workload, tmp_path: Path) -> None:
    """Two training runs of one name have a state each; stopped in the second, the first is not run
    again."""
    pipeline = f"{CUT},finetune{{epochs=1 lr=0.05}},finetune{{epochs=2}}"
    whole = PassManager.parse(pipeline).run(trained, workload=digits)

    def stop(text: str, done: int = 0, total: int | None = None) -> None:
        if text.startswith("epoch 2/2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PassManager.parse(pipeline).run(trained, workload=digits, run_dir=tmp_path, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finetune.2.ckpt", "finetune.ckpt"]
    told: list[str] = []
    resumed = PassManager.parse(pipeline).run(
        trained,
        workload=digits,
        run_dir=tmp_path,
        progress=lambda text, done=0, total=None: told.append(text),
    )
    assert [text.partition(",")[0] for text in told] == ["epoch 2/2"]
    weights = resumed.graph.weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.graph.weights.items())


def test_the_original_is_the_teacher(trained: Graph, digits: Workload) -> None:
    """The pass learns what `train` learns from the original network; without it the weights are
    others."""
    cut = PassManager.parse(CUT).run(trained, workload=digits)

    def run(options: str) -> tuple[dict[str, Tensor], TrainingLog]:
        result = PassManager.parse(f"{CUT},finetune{{{options}}}").run(trained, workload=digits)
        log = result.records["finetune"]
        assert isinstance(log, TrainingLog)
        return result.graph.weights, log

    taught, log = run("epochs=1 lr=0.1")
    teacher = build_module(trained, trained.weights)
    train(cut.module, digits, SGD(epochs=1, lr=0.1, distil=0.5, temperature=4), teacher=teacher)
    assert all(
        torch.equal(taught[name], tensor) for name, tensor in cut.module.state_dict().items()
    )
    assert log.notes == []
    alone, log = run("epochs=1 lr=0.1 distil=0")
    assert log.notes == []
    assert not torch.equal(alone["conv1.weight"], taught["conv1.weight"])


@pytest.mark.parametrize("case", ["uncut", "untrained", "regression"])
def test_no_teacher_where_it_cannot_help(trained: Graph, digits: Workload, case: str) -> None:
    graph, workload, pipeline = trained, digits, f"{CUT},finetune{{epochs=1}}"
    if case == "uncut":
        pipeline, why = "finetune{epochs=1}", "nothing was removed from the network yet"
    elif case == "untrained":
        with seeded(0):
            graph = capture(DigitsResNet((6, 8, 12)).eval(), (torch.zeros(2, 1, 8, 8),))
        why = "the original network scores .* which chance does too"
    else:
        x = torch.randn(40, 1, 8, 8)
        workload = workload_of(
            x,
            x.mean((1, 2, 3)),
            loss=lambda outputs, targets: nn.functional.mse_loss(outputs[:, 0], targets),
            metric=lambda outputs, targets: -((outputs[:, 0] - targets) ** 2),
        )
        why = "distillation is for classification with the default cross-entropy"
    result = PassManager.parse(pipeline).run(graph, workload=workload)
    log = result.records["finetune"]
    assert isinstance(log, TrainingLog)
    (note,) = log.notes
    assert note.startswith("without a teacher: ")
    assert re.search(why, note)
    plain = PassManager.parse(pipeline.replace("epochs=1}", "epochs=1 distil=0}")).run(
        graph, workload=workload
    )
    weights = plain.graph.weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in result.graph.weights.items())


def test_distillation_asked_for_in_vain(trained: Graph, digits: Workload) -> None:
    """A recipe that asks for a teacher where there can be none is an error, not a silent change."""
    other = replace(digits, num_classes=None)
    with pytest.raises(UserError, match="distillation needs classification"):
        train_state(state_of(trained, other), SGD(epochs=1, distil=0.5), name="sparse")
    with pytest.raises(UserError, match="sparse needs data"):
        train_state(state_of(trained, None), RECIPE, name="sparse")  # type: ignore[arg-type]
