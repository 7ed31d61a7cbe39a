"""``python -m pruneopt.tools.demo``: a real network, trained, pruned to half its FLOPs, proved and
fine-tuned.

The network is the zoo's small residual one, the data scikit-learn's scanned digits, so nothing is
downloaded. Trained weights are kept in ``runs/``, so that a second run starts with pruning.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pruneopt.errors import PruneoptError, UserError
from pruneopt.files import atomic_path
from pruneopt.tools.report.text import percent, seconds

if TYPE_CHECKING:
    from torch import nn

    from pruneopt.models.source import LoadedModel

__all__ = ["main"]

MODEL, DATA = "zoo:digits_resnet", "digits"
EPOCHS, LEARNING_RATE = 8, 0.1
FINETUNE_EPOCHS = 4


def main(folder: Path = Path("runs")) -> int:
    """Run the demo below a folder; returns the exit code of the compile."""
    started = time.perf_counter()
    # Threads that wait by spinning make this many times slower where other programs use the cores
    # too. Read when torch is imported, hence the imports inside the functions.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    weights = folder / "digits_resnet.safetensors"
    try:
        _trained(weights)
    except PruneoptError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    out = folder / "demo"
    words = [
        "compile",
        MODEL,
        "--weights",
        str(weights),
        "--data",
        DATA,
        "--pass",
        "abn",
        "--budget",
        "50%FLOPs",
    ]
    words += ["--finetune-epochs", str(FINETUNE_EPOCHS), "--out", str(out), "--force"]
    print(f"\n$ pruneopt {shlex.join(words)}\n", flush=True)
    code = subprocess.run(
        [sys.executable, "-m", "pruneopt.tools.main", *words], check=False
    ).returncode
    if code == 0:
        _summary(out, time.perf_counter() - started)
    return code


def _trained(path: Path) -> None:
    """Train the network and keep its weights, unless they are there already."""
    import safetensors.torch

    from pruneopt.models.source import load_model

    if path.exists():
        try:
            load_model(MODEL, weights=path)
            print(f"Trained weights are in {path}.")
            return
        except UserError:
            print(f"{path} is no longer readable; training anew.")
    module = _train(load_model(MODEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(module.state_dict()))


def _train(loaded: LoadedModel) -> nn.Module:
    from torch import nn

    from pruneopt.passes.training.recipe import SGD
    from pruneopt.passes.training.trainer import train

    module = loaded.module
    if not isinstance(module, nn.Module):
        raise UserError(f"{MODEL} is no module")
    workload = loaded.workload(DATA)
    print(
        f"Training {MODEL} on {len(workload.train)} scanned digits ({EPOCHS} epochs, once):",
        flush=True,
    )

    def tell(text: str, done: int = 0, total: int | None = None) -> None:
        print(f"  {text}", flush=True)

    train(module, workload, SGD(epochs=EPOCHS, lr=LEARNING_RATE, batch_size=64), progress=tell)
    return module


def _summary(out: Path, spent: float) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    scores = {item["after"]: item["score"] for item in report["scores"]}
    pruned = scores.get("recalibrate", scores["slice"])
    print(f"\nAccuracy on {DATA} that no stage had seen:")
    print(f"  before                         {percent(scores['original'])}")
    print(f"  after ABN, half the FLOPs      {percent(pruned)}")
    print(f"  after {FINETUNE_EPOCHS} epochs of fine-tuning  {percent(scores['finetune'])}")
    print(
        f"\nThe bundle is in {out}, the report is {out / 'report.html'} ({seconds(spent)} in all)."
    )


if __name__ == "__main__":
    sys.exit(main())
