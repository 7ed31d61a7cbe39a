"""Chains of convolutions, to search their widths."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from helpers.chains import chain_state

from pruneopt.passes.pipeline.state import State


@pytest.fixture(scope="session")
def conv_chain() -> Callable[..., State]:
    """``conv_chain(widths, ...)``: the state of a `Chain`, without data."""

    def make(widths: Sequence[int] = (16, 24, 24, 32, 32), **options: Any) -> State:
        return chain_state(widths, **options)

    return make
