"""The lists of networks of the coverage benchmark: text files in benchmarks/networks/, one spec a
line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["LISTS", "family", "located", "named"]

FOLDER = Path(__file__).parent / "networks"
LISTS = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))
KINDS = {
    "segmentation": ("fcn_", "deeplabv3_", "lraspp_"),
    "detection": ("fasterrcnn_", "maskrcnn_", "keypointrcnn_", "retinanet_", "fcos_", "ssd"),
    "video": ("r3d_", "mc3_", "r2plus1d_", "s3d", "mvit_", "swin3d_"),
    "optical flow": ("raft_",),
}
"""torchvision's families but classification, by how names begin."""


def named(names: Sequence[str]) -> list[str]:
    """Return the specs that names stand for: a list's name, or a spec; every list for none. Each
    once, in order."""
    found: dict[str, None] = {}
    for name in names or LISTS:
        found |= dict.fromkeys(_read(name) if name in LISTS else [name])
    return list(found)


def located(spec: str) -> str:
    """Return a spec for `load_model`: a model file of a list lies beside the list."""
    beside = FOLDER / spec.partition(":")[0].partition("?")[0]
    return str(FOLDER / spec) if beside.suffix == ".py" and beside.is_file() else spec


def family(spec: str) -> str:
    """Return what a network is counted under: the library, and for torchvision the kind."""
    library, _, name = spec.partition(":")
    if library == "torchvision":
        kinds = [kind for kind, starts in KINDS.items() if name.startswith(starts)]
        return f"torchvision {kinds[0] if kinds else 'classification'}"
    if library.startswith("hf_"):
        return "transformers"
    return library if name else "built in the benchmark"


def _read(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [spec for line in lines if (spec := line.partition("#")[0].strip())]
