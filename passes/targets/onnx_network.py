"""An ONNX file as a module, so that whatever scores modules scores files too."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.passes.targets.ort_providers import CPU, SILENT

__all__ = ["OnnxNetwork"]


class OnnxNetwork(nn.Module):
    """A file in onnxruntime on the processor; takes tensors of any precision, gives single.

    One output is a tensor, several are a tuple in the file's order.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        """``threads`` None takes torch's number."""
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[CPU])
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{os.fspath(path)} cannot be loaded by onnxruntime: {reason[:300]}"
            ) from error
        self._names = [
            (item.name, item.type == "tensor(float16)") for item in self._session.get_inputs()
        ]

    def forward(self, *inputs: Tensor) -> Any:
        feed = {}
        for (name, half), x in zip(self._names, inputs, strict=True):
            single = x.to(torch.float16 if half else torch.float32) if x.is_floating_point() else x
            feed[name] = single.cpu().numpy()
        found = [torch.from_numpy(item) for item in self._session.run(None, feed)]
        outputs = [item.float() if item.is_floating_point() else item for item in found]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
