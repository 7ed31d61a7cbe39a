"""Sessions compute and are set up as they should, against the module itself in double precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.passes.targets.ort_targets import BoundSession, OrtCPU, OrtSession
from pruneopt.passes.targets.session import fixed_inputs
from pruneopt.passes.targets.target import parse_target
from pruneopt.passes.targets.torch_targets import (
    GraphSession,
    TorchCPU,
    TorchSession,
    deployed_module,
)
from pruneopt.passes.timing.clock import WallClock

TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 0.15}
"""Relative to the largest output. Half precisions round every value to 11 or 8 bits, a relative
error of at most 2^-11 or 2^-8, and a chain of ten operations adds up several of them; int8 keeps
256 levels of a layer's range."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm2(self.deep(x)) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    module = Net().eval()
    for norm in (module.norm, module.norm2):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    return module


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> Graph:
    return capture(net, (torch.randn(2, 3, 12, 12),))


def exact(net: nn.Module, graph: Graph, batch: int) -> np.ndarray:
    (x,) = fixed_inputs(graph, batch)
    with torch.no_grad():
        result: np.ndarray = Net.forward(net.double(), x.double()).numpy()  # type: ignore[arg-type]
    net.float()
    return result


@pytest.mark.parametrize(
    "text",
    [
        "torch-cpu",
        "torch-cpu{batch=3 format=channels-last threads=2}",
        "torch-cpu{dtype=fp16}",
        "torch-cpu{dtype=bf16}",
        "ort-cpu{batch=3 threads=2}",
        "ort-cpu{dtype=fp16}",
        "ort-cpu{batch=2 dtype=int8}",
    ],
)
def test_sessions_compute_the_network(net: nn.Module, graph: Graph, text: str) -> None:
    target: Any = parse_target(text)
    calibration = [tuple(fixed_inputs(graph, 4))]
    session = target.load(graph, graph.weights, calibration=calibration)
    session.run()
    session.step()
    (found,) = session.outputs()
    wanted = exact(net, graph, target.batch)
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= TOLERANCES[target.dtype] * np.abs(wanted).max()
    if target.dtype != "fp32":  # another precision was really used
        assert np.abs(found - wanted).max() > TOLERANCES["fp32"] * np.abs(wanted).max()
    assert isinstance(session.clock(), WallClock)
    if isinstance(session, OrtSession):
        assert [item.shape for item in session.session.get_inputs()] == [[target.batch, 3, 12, 12]]
        options = session.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (target.threads, 1)
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    session.close()
    with pytest.raises((UserError, AttributeError)):
        session.run()


@pytest.mark.slow
def test_a_compiled_session_computes_the_network(net: nn.Module, graph: Graph) -> None:
    session = TorchCPU(mode="compiled").load(graph, graph.weights)
    assert np.allclose(session.outputs()[0], exact(net, graph, 1), atol=1e-5)


def test_torch_runs_with_folded_norms_and_pinned_threads(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    session = TorchCPU(threads=3, format="channels-last").load(graph, graph.weights)
    assert isinstance(session, TorchSession)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in session.module.modules())
    assert session.inputs[0].is_contiguous(memory_format=torch.channels_last)
    kernels = [weight for weight in session.module.parameters() if weight.dim() == 4]
    assert len(kernels) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    assert not any(weight.requires_grad for weight in kernels)
    before = torch.get_num_threads()
    session._call = lambda x: seen.append(
        (torch.get_num_threads(), torch.is_inference_mode_enabled())
    )
    session.run()
    assert seen == [(3, True)]
    assert torch.get_num_threads() == before


def test_threads_come_back_after_an_error(graph: Graph) -> None:
    session = TorchCPU(threads=3).load(graph, graph.weights)
    before = torch.get_num_threads()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.run()
    assert torch.get_num_threads() == before


def test_what_is_written_is_in_the_targets_precision(graph: Graph, tmp_path: Any) -> None:
    def types(text: str) -> set[int]:
        target: Any = parse_target(text)
        target.write(
            graph, graph.weights, tmp_path / "m.onnx", calibration=[tuple(fixed_inputs(graph, 2))]
        )
        model = onnx.load(tmp_path / "m.onnx")
        return {item.data_type for item in model.graph.initializer if len(item.dims) == 4}

    assert types("ort-cpu{dtype=fp16}") == {onnx.TensorProto.FLOAT16}
    assert types("ort-tensorrt{dtype=int8}") == {onnx.TensorProto.INT8}


def test_int8_needs_calibration_inputs(graph: Graph) -> None:
    with pytest.raises(UserError, match=r"ort-cpu\{dtype=int8\} needs calibration inputs"):
        OrtCPU(dtype="int8").load(graph, graph.weights)


class Codes(nn.Module):
    """Integer codes and a mask beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)

    def forward(self, codes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.words(codes).mean(1) + x
        return found, found.argmax(1)


@pytest.fixture(scope="module")
def codes() -> Graph:
    return capture(Codes().eval(), (torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 4)))


@pytest.mark.parametrize("text", ["torch-cpu{batch=2}", "ort-cpu{batch=2 dtype=fp16}"])
def test_codes_stay_codes(codes: Graph, text: str) -> None:
    session = parse_target(text).load(codes, codes.weights)
    numbers, best = session.outputs()
    x = fixed_inputs(codes, 2)[1]
    wanted = codes.weights["words.weight"][0] + x
    assert np.allclose(numbers, wanted.detach().numpy(), atol=1e-2)
    assert best.dtype == np.int64
    assert best.tolist() == numbers.argmax(1).tolist()


def test_inputs_are_the_same_every_time(graph: Graph, codes: Graph) -> None:
    assert torch.equal(fixed_inputs(graph, 3)[0], fixed_inputs(graph, 3)[0])
    first = fixed_inputs(codes, 3)[0]
    assert first.shape == (3, 3)
    assert not first.any()


def test_a_fixed_batch_is_no_other(net: nn.Module) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 12).sum(1)

    fixed = capture(Fixed(), (torch.randn(2, 3, 4),))
    with pytest.raises(UserError, match="captured at a fixed batch of 2, not of 3"):
        TorchCPU(batch=3).load(fixed, {})
    for text in ("torch-cpu{batch=2}", "ort-cpu{batch=2}"):
        assert parse_target(text).load(fixed, {}).outputs()[0].shape == (2,)


def test_what_a_runtime_cannot_do_is_a_sentence(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="onnxruntime cannot run this network: "):
        OrtCPU().open(tmp_path / "bad.onnx", [])

    def broken(*args: Any) -> Any:
        raise RuntimeError("no kernel for Half\nmore")

    monkeypatch.setattr(Net, "forward", broken)
    module, inputs = deployed_module(
        graph, graph.weights, 1, "fp32", "contiguous", torch.device("cpu")
    )
    monkeypatch.setattr(type(module), "forward", broken)
    with pytest.raises(
        UserError, match=r"does not run in this precision and mode: no kernel for Half$"
    ):
        TorchSession(module, inputs, 1, False)


def test_a_session_on_a_gpu_binds_its_inputs_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls in their order, as there is no GPU: everything is bound once, a run waits for its
    outputs."""
    log: list[Any] = []

    class Binding:
        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            log.append(("input", name, value))

        def bind_output(self, name: str, device: str, index: int) -> None:
            log.append(("output", name, device, index))

        def synchronize_outputs(self) -> None:
            log.append("wait")

    class Runtime:
        def get_inputs(self) -> list[Any]:
            return [type("Item", (), {"name": "x"})]

        def get_outputs(self) -> list[Any]:
            return [type("Item", (), {"name": "y"})]

        def run(self, names: None, feed: Any) -> list[np.ndarray]:
            return [feed["x"] + 1]

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding) -> None:
            log.append("run")

    monkeypatch.setattr(
        "onnxruntime.OrtValue.ortvalue_from_numpy", lambda x, device, index: (device, index)
    )
    session = BoundSession(Runtime(), [np.zeros(2, np.float32)], 1)
    session.run()
    assert log == [("input", "x", ("cuda", 1)), ("output", "y", "cuda", 1), "run", "wait"]
    assert session.outputs()[0].tolist() == [1.0, 1.0]


def test_a_cuda_graph_is_captured_after_a_warm_up_and_replayed(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls in their order, as there is no GPU: one of the module as a check, three beside, one
    captured."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = "main" if name is None else "side"

        def wait_stream(self, other: Any) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Recorder:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def entered(name: str) -> Iterator[None]:
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    main = Stream(None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: entered("capture"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronise"))
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *args: log.append("forward"))
    session = GraphSession(module, [torch.ones(1, 2)])
    side = [
        "side waits for main",
        "enter side",
        "forward",
        "forward",
        "forward",
        "leave side",
        "main waits for side",
    ]
    assert log == ["forward", *side, "enter capture", "forward", "leave capture"]
    log.clear()
    session.step()
    session.run()
    assert log == ["replay", "replay", "synchronise"]
    assert np.allclose(session.outputs()[0], module(torch.ones(1, 2)).detach().numpy())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "text",
    [
        *("torch-cuda", "torch-cuda{dtype=fp16 format=channels-last}", "torch-cuda{mode=graph}"),
        *("torch-cuda{mode=compiled}", "ort-cuda", "ort-cuda{dtype=fp16}", "ort-tensorrt"),
    ],
)
def test_sessions_on_a_gpu_compute_the_network(net: nn.Module, graph: Graph, text: str) -> None:
    target: Any = parse_target(text)
    if target.unavailable() is not None:
        pytest.skip(target.unavailable())
    session = target.load(graph, graph.weights)
    session.run()
    assert session.clock().seconds(session.step) > 0
    wanted = exact(net, graph, 1)
    tolerance = max(TOLERANCES[target.dtype], 5e-3)  # TF32 keeps 11 bits, as fp16 does
    assert np.abs(session.outputs()[0] - wanted).max() <= tolerance * np.abs(wanted).max()
