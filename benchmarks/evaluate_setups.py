"""Trained networks, real images and random plans for `evaluate.py`."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pruneopt import Graph, UserError, Workload, build_module, capture, load_data, load_model
from pruneopt.extend import (
    CostModel,
    Coupling,
    TensorSplit,
    couple,
    keep_best,
    parse_budget,
    score_units,
    slice_graph,
)
from pruneopt.models.images import Preprocess
from pruneopt.models.weights import read_weights
from pruneopt.models.workload import cut
from pruneopt.passes.analysis.ops.batch_norm import running_norm
from pruneopt.passes.search.searchers.sampling import WidthSampler

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BUDGETS = {"resnet20": "50%FLOPs", "resnet56": "50%FLOPs", "mobilenet_v2": "90%FLOPs"}
CIFAR = "cifar10:{}?normalise=imagenet&limit=20000&subval=10000&calibration=10000"


@dataclass(frozen=True)
class Setup:
    """A network, its data, and plans of it."""

    name: str
    graph: Graph
    coupling: Coupling
    workload: Workload
    plans: list[dict[str, np.ndarray]]

    def kept_channels(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Return which channels `[C]` of every batch norm's module are kept."""
        found = {}
        flags = np.append(kept, True)
        for norm in filter(None, map(running_norm, self.coupling.graph.ops)):
            units = np.full(norm.mean.type.shape(), len(kept))
            for slot in self.coupling.slots_of(norm.mean):
                units = np.broadcast_to(slot.units, units.shape)
            found[norm.mean.name.rpartition(".")[0]] = flags[units]
        return found

    @property
    def batch_size(self) -> int:
        """Images in a batch for statistics."""
        return 32 if self.name == "mobilenet_v2" else 128

    @property
    def races(self) -> tuple[int, int]:
        """Images on the first rung of a short and of a long race."""
        return (64, 128) if self.name == "mobilenet_v2" else (512, 2048)

    @property
    def cut_by(self) -> str:
        return (
            "torch-pruning"
            if self.name == "mobilenet_v2"
            else "slicing (torch-pruning fails on the network)"
        )

    def cut(self, network: nn.Module, index: int) -> nn.Module:
        """Return a copy of the network cut to a plan, by torch-pruning where that gives a network
        that runs."""
        if self.name != "mobilenet_v2":
            small = slice_graph(self.graph, self.coupling, self.plans[index])
            return build_module(small, small.weights)
        kept = self.kept_channels(self.coupling.kept_units(self.plans[index]))
        return cut_by_tool(network, kept, torch.zeros(self.graph.inputs[0].type.shape(1)))


def cut_by_tool(network: nn.Module, kept: Mapping[str, np.ndarray], example: Tensor) -> nn.Module:
    """Return torchvision's MobileNetV2, cut in place by torch-pruning.

    Args:
        kept: which channels `[C]` behind every batch norm stay, by its name.
        example: an input `[N, 3, H, W]`.
    """
    import torch_pruning as tp

    with torch.enable_grad():  # it walks autograd's graph
        dependencies = tp.DependencyGraph().build_dependency(network, example_inputs=example)
    layers = dict(network.named_modules())
    done: set[nn.Module] = set()
    for name, flags in kept.items():
        layer = layers[layer_before(name)]
        if flags.all() or layer in done:
            continue
        removed = np.flatnonzero(~flags).tolist()
        group = dependencies.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=removed)
        # A group also has the layers that read these channels: their own outputs are still whole.
        done |= {
            item.dep.target.module
            for item in group
            if dependencies.is_out_channel_pruning_fn(item.dep.handler)
        }
        group.prune()
    return network


def layer_before(norm: str) -> str:
    """Return the convolution before a batch norm: one place before it in torchvision's
    MobileNetV2."""
    stem, _, place = norm.rpartition(".")
    return f"{stem}.{int(place) - 1}"


def setup(name: str, candidates: int, seed: int) -> Setup:
    """Return one of the benchmark's networks with random plans on its budget.

    Raises:
        UserError: an unknown name, or no weights and images.
    """
    if not (SHARED / "weights").is_dir():
        raise UserError(f"the benchmark needs trained weights and images in {SHARED}")
    if name in ("resnet20", "resnet56"):
        workload = load_data(CIFAR.format(SHARED / "cifar10"), input_shape=(1, 3, 32, 32), seed=0)
        weights = SHARED / "weights" / f"cifar10_{name}_optA.safetensors"
        graph = capture(
            load_model(f"zoo:{name}", weights=weights).module, torch.zeros(2, 3, 32, 32)
        )
    elif name == "mobilenet_v2":
        workload, graph = imagenet_sample(), mobilenet()
    else:
        raise UserError(f"there is no setup {name!r}: use resnet20, resnet56 or mobilenet_v2")
    return with_plans(name, graph, workload, candidates, seed)


def with_plans(name: str, graph: Graph, workload: Workload, candidates: int, seed: int) -> Setup:
    """Return a setup with random plans on the network's budget."""
    coupling = couple(graph)
    cost, scores = CostModel(graph, coupling), score_units(coupling, graph.weights, "l1")
    sampler = WidthSampler(
        coupling, cost, [parse_budget(BUDGETS[name])], scores, max_ratio=0.7, seed=seed
    )
    plans = [
        keep_best(sampler.draw(index).widths, scores, coupling, cost) for index in range(candidates)
    ]
    return Setup(name, graph, coupling, workload, plans)


def mobilenet() -> Graph:
    """Return MobileNetV2 with weights of TensorFlow's padding, turned by 180 degrees: torchvision's
    padding fits these."""
    network = load_model("torchvision:mobilenet_v2").module
    assert isinstance(network, nn.Module)
    weights = read_weights(SHARED / "weights" / "mobilenet_v2_imagenet.safetensors")
    turned = {
        name: w.flip(2, 3) if w.ndim == 4 and w.shape[-1] == 3 else w for name, w in weights.items()
    }
    network.load_state_dict(turned, strict=False)
    return capture(network.eval(), torch.zeros(2, 3, 224, 224))


def imagenet_sample() -> Workload:
    """Return a thousand photographs, turned by 180 degrees as the weights are: half for statistics,
    half for scores."""
    folder = SHARED / "imagenet-sample"
    with (folder / "nips2017_dev_labels.csv").open(encoding="utf-8") as file:
        labels = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    with zipfile.ZipFile(folder / "nips2017_dev_224.zip") as archive:
        names = sorted(item for item in archive.namelist() if item.endswith(".jpg"))
        images = torch.stack([turned(archive.read(item)) for item in names])
    targets = torch.tensor([labels[Path(item).name] for item in names])
    prepare = Preprocess((3, 224, 224), "half", "none")

    def part(indices: np.ndarray) -> TensorSplit:
        return TensorSplit(images, targets, torch.from_numpy(indices), prepare)

    train, calibration, subval = (
        part(item) for item in cut(None, len(images), seed=0, subval=500, calibration=500)
    )
    return Workload("photographs", 1000, train, calibration, subval, subval)


def turned(data: bytes) -> Tensor:
    """Return a photograph as uint8 `[3, 224, 224]`, turned by 180 degrees."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels[::-1, ::-1].copy()).permute(2, 0, 1)
