"""Targets as text, and what a machine says that does not have them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.passes.targets import ort_providers
from pruneopt.passes.targets.fallback import or_processor
from pruneopt.passes.targets.ort_providers import CPU, CUDA, TENSORRT, provider_trouble
from pruneopt.passes.targets.ort_targets import OrtCPU, OrtCUDA, OrtTensorRT
from pruneopt.passes.targets.target import parse_target, target_classes
from pruneopt.passes.targets.torch_targets import TorchCPU, TorchCUDA

NAMES = ("torch-cpu", "torch-cuda", "ort-cpu", "ort-cuda", "ort-tensorrt")
no_driver = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what a machine was found to offer."""
    provider_trouble.cache_clear()
    yield
    provider_trouble.cache_clear()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ort-cpu", "ort-cpu"),
        ("ort-cpu{batch=1}", "ort-cpu"),
        ("ort-cpu{threads=2 batch=8}", "ort-cpu{batch=8 threads=2}"),
        ("ort-cpu{dtype=int8}", "ort-cpu{dtype=int8}"),
        (
            "torch-cpu{format=channels-last mode=compiled}",
            "torch-cpu{format=channels-last mode=compiled}",
        ),
        ("torch-cuda{mode=graph dtype=bf16}", "torch-cuda{dtype=bf16 mode=graph}"),
        ("ort-tensorrt{dtype=fp16}", "ort-tensorrt{dtype=fp16}"),
    ],
)
def test_a_target_has_one_text_that_reads_back(text: str, same: str) -> None:
    found = parse_target(text)
    assert str(found) == same
    assert parse_target(same) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ort-gpu", "there is no target 'ort-gpu'"),
        ("ort-cpu{batch=0}", "batch=0 must be at least 1"),
        ("ort-cpu{threads=0}", "threads=0 must be at least 1"),
        ("torch-cpu{threads=-1}", "threads=-1 must be at least 1"),
        ("ort-cpu{dtype=bf16}", "must be one of fp32, fp16, int8"),
        ("torch-cpu{dtype=int8}", "must be one of fp32, fp16, bf16"),
        ("torch-cpu{mode=graph}", "must be one of eager, compiled"),
        ("ort-cuda{threads=2}", "has no option 'threads'"),
    ],
)
def test_what_is_no_target(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_target(text)


def test_every_target_is_listed() -> None:
    assert tuple(kind.name for kind in target_classes()) == NAMES
    assert [kind().unavailable() for kind in (TorchCPU, OrtCPU)] == [None, None]
    assert onnxruntime.__version__ in OrtCPU().runtime()
    assert torch.__version__ in TorchCPU().runtime()


# Machines that lack something


@no_driver
def test_a_machine_without_a_gpu_says_so() -> None:
    for kind in (TorchCUDA, OrtCUDA, OrtTensorRT):
        with pytest.raises(
            UserError, match=r"not available: this machine has no CUDA device.*pruneopt targets"
        ):
            kind().need()


def test_torch_without_cuda_names_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in (TorchCUDA().unavailable() or "")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TorchCUDA(device=1).unavailable() is None
    assert (
        TorchCUDA(device=2).unavailable()
        == "this machine has 2 CUDA devices, and device=2 is none of them"
    )


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not installed" in (TorchCPU(mode="compiled").unavailable() or "")
    assert TorchCPU().unavailable() is None


def test_a_runtime_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    reason = OrtCUDA().unavailable() or ""
    assert "built without the CUDA provider: install onnxruntime-gpu" in reason


@no_driver
@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_is_compiled_in_but_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], provider: str
) -> None:
    """As on a machine with a driver and without libraries: the real runtime is asked, and what it
    logs is not shown."""
    monkeypatch.setattr(ort_providers, "_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    reason = provider_trouble(provider)
    assert reason is not None
    assert f"provider of onnxruntime {onnxruntime.__version__} does not load: " in reason
    assert "\n" not in reason
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_loads_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def session(model: bytes, options: Any, providers: Any, enable_fallback: int) -> Any:
        seen.update(providers=providers, fallback=enable_fallback)
        return SimpleNamespace(get_providers=lambda: [CUDA, CPU])

    monkeypatch.setattr(ort_providers, "_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("noise"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert OrtCUDA(device=1).unavailable() is None
    assert seen == {"providers": [(CUDA, {"device_id": "1"})], "fallback": 0}


def test_the_tiny_model_is_a_model() -> None:
    session = onnxruntime.InferenceSession(ort_providers._tiny_model(), providers=[CPU])
    (found,) = session.run(None, {"x": torch.ones(1, 1, 4, 4).numpy()})
    assert found.tolist() == [[[[9.0, 9.0], [9.0, 9.0]]]]


def test_the_library_that_a_provider_lacks_is_named(tmp_path: Path) -> None:
    """The loader's own words decide: a library that is there, or that fails otherwise, names
    nothing."""
    (tmp_path / "capi").mkdir()
    missing = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    assert ort_providers._missing_library(tmp_path, CUDA) == f"{missing} is not installed"
    missing.write_bytes(b"no library")
    assert ort_providers._missing_library(tmp_path, CUDA) is None


# Falling back


def offering(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(
        "pruneopt.passes.targets.ort_targets.provider_trouble",
        lambda provider, device: None if provider in providers else "it is not there",
    )


def test_onnxruntime_falls_back_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    offering(monkeypatch, CPU)
    target, note = or_processor(parse_target("ort-cuda{batch=4 dtype=fp16}"))
    assert str(target) == "ort-cpu{batch=4 dtype=fp16}"
    assert note == (
        "ort-cuda{batch=4 dtype=fp16} is not available: it is not there; ort-cpu{batch=4 "
        "dtype=fp16} takes its place"
    )
    assert or_processor(parse_target("ort-tensorrt"))[0] == OrtCPU()


def test_tensorrt_falls_back_on_cuda_first(monkeypatch: pytest.MonkeyPatch) -> None:
    offering(monkeypatch, CPU, CUDA)
    target, note = or_processor(parse_target("ort-tensorrt{batch=2 device=1}"))
    assert target == OrtCUDA(batch=2, device=1)
    assert note is not None
    assert or_processor(target) == (target, None)


def test_other_targets_do_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert or_processor(TorchCUDA()) == (TorchCUDA(), None)


def test_what_the_gpu_providers_are_told() -> None:
    assert OrtCUDA(device=1, format="channels-last").providers() == [
        (CUDA, {"device_id": "1", "prefer_nhwc": "1"}),
        CPU,
    ]
    fp16 = OrtTensorRT(dtype="fp16").providers()
    assert fp16 == [
        (TENSORRT, {"device_id": "0", "trt_fp16_enable": "1"}),
        (CUDA, {"device_id": "0"}),
        CPU,
    ]
    assert OrtTensorRT().providers()[0] == (TENSORRT, {"device_id": "0"})
