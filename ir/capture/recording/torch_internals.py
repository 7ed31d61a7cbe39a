"""The versions of torch that the recorder was tested with, and the private names it is built on.

Any of these names may vanish or change its meaning with the next release of torch. Therefore a
version outside the list is not recorded from: its networks are exported, as is everything that a
recording cannot tell.
"""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name

import torch

__all__ = ["PRIVATE_NAMES", "TESTED_VERSIONS", "why_untested"]

TESTED_VERSIONS = ("2.11", "2.12", "2.13", "2.14", "2.15")
"""The versions that the package may be installed with. One more needs the tests of ``tests/ir``."""

PRIVATE_NAMES = {
    "torch._C:DispatchKey.PreDispatch": "sees ATen calls before autograd and decompositions",
    "torch._subclasses.schema_check_mode:SchemaCheckMode": "the only mode that is let in there",
    "torch._dispatch.python:enable_python_dispatcher": "sends calls on meta tensors there",
    "torch._C:_DisablePythonDispatcher": "runs an op without being seen",
    "torch._C:_AutoDispatchBelowAutograd": "runs an op without gradients",
    "torch._C:DisableTorchFunction": "reads attributes of tensors without being seen",
    "torch._C:_set_grad_enabled": "how no_grad shows among the functions",
    "torch._C:_is_any_autocast_enabled": "a region with autocast is refused",
    "torch.utils._device:_device_constructors": "functions that make tensors",
    "torch.utils._pytree:tree_flatten": "the structure of what a network returns",
    "torch.nn.modules.module:_has_any_global_hook": "a module with hooks runs as it is",
    "torch.compiler:_is_compiling_flag": "networks are told what torch.export tells them",
    "torch.compiler:_is_exporting_flag": "networks are told what torch.export tells them",
    "torch.fx.graph:_Namespace": "names ops as torch.export names them",
    "torch:UntypedStorage._cdata": "tells whose memory is written",
    "torch.nn:Module.__call__": "replaced while a network is recorded",
    "torch.autograd:Function.apply": "replaced while a network is captured",
    "torch.jit:ScriptFunction.__call__": "replaced while a network is recorded",
}
"""A name that the recorder relies on -> what for. The last three are public, but nobody promises
that they can be replaced."""


@cache
def why_untested() -> str | None:
    """Say why this torch cannot be recorded from; None where it can."""
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in TESTED_VERSIONS:
        return (
            f"torch {version} is not among the versions that recording was tested with "
            f"({TESTED_VERSIONS[0]} to {TESTED_VERSIONS[-1]})"
        )
    missing = [name for name in PRIVATE_NAMES if not _exists(name)]
    return f"this torch lacks {missing[0].replace(':', '.')}" if missing else None


def _exists(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
