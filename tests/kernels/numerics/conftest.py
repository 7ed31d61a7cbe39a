"""The device on which the kernels run: on a GPU, or on the CPU in Triton's interpreter when this
process was started for that.

`tests/kernels/test_interpreter.py` starts such a process. On a machine with a GPU: `pytest -m gpu
tests/kernels`.
"""

import dataclasses
import os

import pytest
import torch
from ragged.buffers import SETTINGS, Setting

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    # The interpreter computes twice whether an integer overflows, and looks at it in debugging
    # only.
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = dataclasses.replace(
        interpreter_builder.options, sanitize_overflow=False
    )


@pytest.fixture(scope="session")
def interpreted() -> bool:
    return INTERPRETED


@pytest.fixture(scope="session")
def device() -> str:
    if INTERPRETED:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, and not the interpreter's process")
    return "cuda"


@pytest.fixture(params=SETTINGS, ids=lambda setting: setting.name)
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.param
    if INTERPRETED and not chosen.interpretable:
        pytest.skip(f"the interpreter cannot compute in {chosen.name}")
    return chosen
