"""Launches recorded once and started as one: a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pruneopt.passes.lowering.backends import Step

__all__ = ["CudaGraphs", "LaunchRecorder"]

LaunchRecorder = Callable[[Sequence[Step]], Step]
"""Records launches, and gives what starts them all again, on the same buffers. It may run them.

A launch is recorded with its grid and its arguments as they are: what it should do later must stand
in its buffers.
"""


class CudaGraphs:
    """Records launches as CUDA graphs.

    Args:
        device: of all that is launched.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, steps: Sequence[Step]) -> Step:
        """Record launches; `RuntimeError` where something among the launches cannot be recorded."""
        with torch.cuda.device(self._device):
            ahead = torch.cuda.Stream()
            ahead.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                ahead
            ):  # compiles what is not compiled yet, which no recording may do
                for step in steps:
                    step()
            torch.cuda.current_stream().wait_stream(ahead)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for step in steps:
                    step()
        return graph.replay
