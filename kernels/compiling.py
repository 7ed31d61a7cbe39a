"""Build a launch for a GPU that need not be there, and read what came out: registers, spills,
shared memory, copies.

For those who write kernels. Two faults do not show as errors: facts about alignment that get lost,
after which copies are scalar and slow; and more shared memory than a GPU has. So look at the
numbers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import InternalError, UserError
from pruneopt.kernels.device.language import triton
from pruneopt.kernels.launch import Launch, interpreted

__all__ = ["SHARED_MEMORY", "Built", "build", "compiled"]

SHARED_MEMORY: Mapping[int, int] = {
    80: 166912,
    86: 101376,
    89: 101376,
    90: 232448,
    100: 232448,
    120: 101376,
}
"""Bytes of shared memory that a program may ask for, by compute capability times ten."""

REGISTERS = 65536
"""Registers of a multiprocessor: registers per thread times threads of a program must not exceed
it."""

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


@dataclass(frozen=True, slots=True)
class Built:
    """The result of compiling a launch.

    Attributes:
        registers: per thread.
        shared: bytes of shared memory.
        threads: per program.
        spills: instructions that move registers to and from memory.
        matrix: the matrix instruction, or "none".
        wide_copies: asynchronous copies of 16 bytes.
        wide_stores: stores of 16 bytes.
    """

    registers: int
    shared: int
    threads: int
    spills: int
    matrix: str
    wide_copies: int
    wide_stores: int


def build(launch: Launch, architecture: int) -> Built:
    """Compile a launch for a compute capability times ten (80, 86, 89, 90, 100, 120); no GPU is
    needed.

    The launch's tensors may be on the meta device. Pointers are taken to be aligned to 16 bytes, as
    `Launch` demands.

    Raises:
        UserError: in the interpreter, which compiles nothing.
    """
    made = compiled(launch, architecture)
    registers, sass = _disassemble(made.asm["cubin"])
    ptx: str = made.asm["ptx"]
    matrix = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
    return Built(
        registers=registers,
        shared=int(made.metadata.shared),
        threads=32 * int(made.metadata.num_warps),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        matrix=next((name for name in matrix if name in ptx), "none"),
        wide_copies=len(re.findall(r"cp\.async\.c[ag][^;]*?, 0x10\b", ptx)),
        wide_stores=len(re.findall(r"st\.global(?:\.\w+)*\.v4", ptx)),
    )


def compiled(launch: Launch, architecture: int) -> Any:
    """Triton's compiled kernel, with its intermediate code in `asm`; for the arguments see
    `build`."""
    if interpreted(launch.kernel):
        raise UserError("under TRITON_INTERPRET=1 nothing is compiled: unset it in this process")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, **_signature(launch))
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=launch.options
    )


def _signature(launch: Launch) -> dict[str, Any]:
    """Types, constants and alignments of a kernel's parameters, as a launch with these arguments
    has them."""
    names = list(launch.kernel.arg_names)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = launch.arguments[name] if name in launch.arguments else launch.constants[name]
        if name in launch.constants or value is None:
            signature[name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    return {"signature": signature, "constexprs": constants, "attrs": attributes}


def _disassemble(cubin: bytes) -> tuple[int, str]:
    """Registers per thread, and the machine code as text, by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run(tools / "cuobjdump", "-res-usage", path)
        sass = _run(tools / "cuobjdump", "-sass", path) or _run(tools / "nvdisasm", path)
    found = re.search(r"REG:(\d+)", usage)
    if found is None or not sass:
        raise InternalError(f"Triton's cuobjdump gave no resource usage: {usage[:200]!r}")
    return int(found[1]), sass


def _run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr if done.returncode == 0 else ""
