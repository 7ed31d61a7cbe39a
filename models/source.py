"""Networks by name, checked and ready to be captured.

| spec | what it is |
| --- | --- |
| `model.py`, `model.py:factory` | a file of the user's: see pruneopt.models.model_file |
| `torchvision:resnet50`, `timm:convnext_tiny` | a library network, with its default input size |
| `zoo:resnet56` | one of ours: see pruneopt.models.zoo |
| `program.pt2` | saved by `torch.export.save`; it may run code, so it has to be trusted |

Of torchvision's detectors, the part up to the raw outputs is taken: see pruneopt.models.detection.

Options after `?` go to the factory: `zoo:vgg19_cifar?num_classes=100`, `model.py:make?width=0.5`.
Nothing is ever downloaded: library networks start from random weights, always the same ones, unless
a weights file is given.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.detection import RAW, raw_outputs
from pruneopt.models.model_file import DataSource, read_model_file
from pruneopt.models.spec import checked_shape, did_you_mean, option_values, split_options
from pruneopt.models.user_code import failure
from pruneopt.models.user_data import workload_of
from pruneopt.models.weights import load_weights, refuse_bad_values
from pruneopt.models.workload import Loss, Metric, Workload, seeded

__all__ = ["DataSource", "LoadedModel", "is_library_network", "is_model_file", "load_model"]

# Options of library factories that would fetch weights.
DOWNLOADS = (
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
)
FORMS = "model.py, model.py:factory, torchvision:NAME, timm:NAME, zoo:NAME or program.pt2"


@dataclass(frozen=True)
class LoadedModel:
    """A network and what its source says about it.

    Attributes:
        name: the file's stem or the network's name.
        spec: what was asked for.
        module: the network, on the CPU, in the mode its factory left it in; or an exported program.
        example_inputs: positional arguments for one call.
        data: a data spec, a function returning data sets, or a workload; None if the source names
            none.
        loss, metric, evaluate: the file's own; None means the default.
        origin: the user's file; None for a library network.
        summary: the first line of the factory's (or class's) documentation, possibly empty.
    """

    name: str
    spec: str
    module: nn.Module | ExportedProgram
    example_inputs: tuple[Tensor, ...]
    data: DataSource | None = None
    loss: Loss | None = None
    metric: Metric | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    origin: Path | None = None
    summary: str = ""

    def workload(self, data: str | None = None, *, seed: int = 0) -> Workload:
        """Return the workload to score and train this network with, with the file's own loss,
        metric and evaluate.

        Args:
            data: a data spec that takes the place of the file's; relative paths in it start at the
                working directory.
            seed: decides which training samples are held out.

        Raises:
            UserError: no data named anywhere, or data that cannot be loaded or does not fit.
        """
        source = self.data if data is None else data
        if source is None:
            raise UserError(
                f"{self.name} names no data: give a data set such as digits, cifar10:DIR or "
                "folder:DIR"
            )
        if isinstance(source, str):
            base = self.origin.parent if data is None and self.origin else None
            shape = tuple(self.example_inputs[0].shape)
            workload = load_data(source, input_shape=shape, seed=seed, relative_to=base)
        else:
            parts = source if isinstance(source, Workload) else self._own_data(source, seed)
            workload = workload_of(self.name, parts, seed=seed)
        return dataclasses.replace(
            workload,
            loss=self.loss or workload.loss,
            metric=self.metric or workload.metric,
            evaluate=self.evaluate or workload.evaluate,
        )

    def _own_data(self, source: Callable[[], object], seed: int) -> object:
        with seeded(seed):
            try:
                return source()
            except UserError:
                raise
            except Exception as error:
                path = self.origin or Path(self.name)
                raise failure(error, path.parent, path, "while data() ran") from error


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    trusted: bool = False,
) -> LoadedModel:
    """Return the network a spec names, checked and ready to be captured.

    Args:
        spec: see the module's text.
        weights: a state dict to load into it (`.safetensors`, `.pt`, `.pth`, `.th`).
        input_shape: the shape of the example input with its batch axis; takes the place of what the
            source says.
        trusted: read a `.pt2` file, which may run code while PyTorch loads it.

    Raises:
        UserError: anything the user can mend, in one sentence with file and line.
    """
    if input_shape is not None:
        checked_shape("the input shape", input_shape)
    head, texts = split_options(spec)
    library, colon, name = head.partition(":")
    with seeded(0):
        if colon and library in _LIBRARIES:
            loaded = _LIBRARIES[library](spec, name, option_values(texts), input_shape)
        else:
            loaded = _from_path(spec, head, option_values(texts), input_shape, trusted)
        if weights is not None:
            if not isinstance(loaded.module, nn.Module):
                raise UserError(f"{head} carries its own weights: leave the weights file out")
            load_weights(loaded.module, weights)
    refuse_bad_values(loaded.module, str(weights or head))
    return loaded


def is_model_file(spec: str) -> bool:
    """Return whether a spec names a Python file of the user: loading it runs code of theirs."""
    head, _ = split_options(spec)
    return head.endswith(".py") or ".py:" in head


def is_library_network(spec: str) -> bool:
    """Return whether a spec names a network of a library: a record may then name it, because it
    names no code of its own."""
    library, colon, _ = spec.partition(":")
    return bool(colon) and library in _LIBRARIES


def _from_path(
    spec: str, head: str, options: dict[str, Any], shape: tuple[int, ...] | None, trusted: bool
) -> LoadedModel:
    file, colon, factory = head.rpartition(":") if ".py:" in head else (head, "", "")
    path = Path(file).expanduser()
    if path.suffix == ".py" and not (colon and not factory):
        return _from_file(spec, path, factory, options, shape)
    if path.suffix == ".pt2" and not options:
        return _from_program(spec, path, shape, trusted)
    raise UserError(f"'{spec}' is not a network: write {FORMS}")


def _from_program(
    spec: str, path: Path, shape: tuple[int, ...] | None, trusted: bool
) -> LoadedModel:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not trusted:
        raise UserError(
            f"{path} may run code when PyTorch loads it: give --trust (trusted=True in Python) if "
            "you know who wrote it"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch names no exceptions for a damaged archive
        raise UserError(
            f"{path} is truncated, or not a program saved by torch.export.save of this version"
        ) from error
    saved = program.example_inputs
    if shape is not None:
        return LoadedModel(path.stem, spec, program, (torch.randn(shape),), origin=path)
    if saved is None or saved[1] or not all(isinstance(item, Tensor) for item in saved[0]):
        raise UserError(f"{path} holds no positional example tensors: give the input shape")
    return LoadedModel(path.stem, spec, program, tuple(saved[0]), origin=path)


def _from_zoo(
    spec: str, name: str, options: dict[str, Any], shape: tuple[int, ...] | None
) -> LoadedModel:
    module = zoo.create(name, **options)
    entry = zoo.entry(name)
    return LoadedModel(
        name, spec, module, _example(shape or entry.input_shape), summary=_first_line(entry.factory)
    )


def _from_torchvision(
    spec: str, name: str, options: dict[str, Any], shape: tuple[int, ...] | None
) -> LoadedModel:
    from torchvision import models

    if name not in models.list_models():
        raise UserError(
            f"torchvision has no network '{name}': {did_you_mean(name, models.list_models())}"
        )
    builder = models.get_model_builder(name)
    _refuse_downloads(spec, options)
    # Segmentation and detection networks fetch their backbone's weights unless told not to.
    none = {
        key: None
        for key in ("weights", "weights_backbone")
        if key in inspect.signature(builder).parameters
    }
    module = _built(spec, lambda: builder(**none, **options))
    summary, raw = _first_line(builder), raw_outputs(module)
    if raw is not None:
        examples = (torch.randn(shape), *raw[1:]) if shape else raw
        return LoadedModel(name, spec, module, examples, summary=f"{summary} ({RAW})")
    examples = _example(shape) if shape else _torchvision_example(name, module)
    return LoadedModel(name, spec, module, examples, summary=summary)


def _torchvision_example(name: str, module: nn.Module) -> tuple[Tensor, ...]:
    """Return inputs of the size the published weights were made for, 16 frames for video, two
    frames for optical flow."""
    from torchvision import models

    recipe = models.get_model_weights(name).DEFAULT.transforms()
    kind = type(recipe).__name__
    if kind == "OpticalFlow":
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    size = getattr(recipe, "crop_size", None) or getattr(recipe, "resize_size", None) or [224]
    height, width = size[0], size[-1]
    fixed = getattr(module, "image_size", None)
    if isinstance(fixed, int):  # vision transformers take one size only
        height = width = fixed
    return _example(
        (1, 3, 16, height, width) if kind == "VideoClassification" else (1, 3, height, width)
    )


def _from_timm(
    spec: str, name: str, options: dict[str, Any], shape: tuple[int, ...] | None
) -> LoadedModel:
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError("timm is not installed: pip install timm") from error
    # Only names timm lists: its hf-hub: and local-dir: prefixes would fetch or read something else.
    if name.partition(".")[0] not in timm.list_models():
        raise UserError(f"timm has no network '{name}': {did_you_mean(name, timm.list_models())}")
    _refuse_downloads(spec, options)
    module = _built(spec, lambda: timm.create_model(name, pretrained=False, **options))
    size = (1, *module.default_cfg["input_size"])
    return LoadedModel(
        name, spec, module, _example(shape or size), summary=_first_line(type(module))
    )


_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm, "zoo": _from_zoo}


def _refuse_downloads(spec: str, options: dict[str, Any]) -> None:
    for key in DOWNLOADS:
        if key in options:
            raise UserError(
                f"'{spec}' asks for pretrained weights: nothing is downloaded, give a weights file "
                "instead"
            )


def _built(spec: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"'{spec}' cannot be built: {text or type(error).__name__}") from error


def _from_file(
    spec: str, path: Path, factory: str, options: dict[str, Any], shape: tuple[int, ...] | None
) -> LoadedModel:
    parts = read_model_file(path, factory, options, input_shape=shape)
    return LoadedModel(
        name=path.stem,
        spec=spec,
        module=parts.module,
        example_inputs=parts.example_inputs,
        data=parts.data,
        loss=parts.loss,
        metric=parts.metric,
        evaluate=parts.evaluate,
        origin=parts.path,
        summary=_first_line(parts.factory),
    )


def _example(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (torch.randn(shape),)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
