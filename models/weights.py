"""Weight files into networks, and the refusal of weights that are not numbers."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pruneopt.errors import UserError
from pruneopt.manifest import check_listed

__all__ = ["load_weights", "read_weights", "refuse_bad_values"]

# Where training scripts put the state dict of a checkpoint, and what wrappers put before its keys.
CHECKPOINT_KEYS = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pt`, `.pth` or `.th` file, by name, without wrapper
    prefixes.

    Raises:
        UserError: missing, truncated, of another kind, or holding Python objects instead of
            tensors.
    """
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist")
    check_listed(path)
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(safetensors.torch.load_file(path))
        except Exception as error:  # a damaged header fails in many ways
            raise UserError(
                f"{path} is truncated or not a safetensors file ({error}): copy it again"
            ) from error
    if path.suffix not in (".pt", ".pth", ".th"):
        raise UserError(f"{path} is not a weights file: use .safetensors, .pt, .pth or .th")
    return _unwrapped(_state_dict(path, _unpickled(path)))


def _unpickled(path: Path) -> object:
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error) or "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds Python objects, not only tensors: save model.state_dict() instead "
                "of the model"
            ) from error
        raise UserError(f"{path} is truncated or not a PyTorch file: copy it again") from error
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} is truncated or not a PyTorch file: copy it again") from error
    return loaded


def _state_dict(path: Path, loaded: object) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        inner = next(
            (loaded[key] for key in CHECKPOINT_KEYS if isinstance(loaded.get(key), Mapping)), loaded
        )
        tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise UserError(
        f"{path} holds no state dict: save model.state_dict(), alone or under the key 'state_dict'"
    )


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next(
            (p for p in WRAPPER_PREFIXES if tensors and all(key.startswith(p) for key in tensors)),
            None,
        )
        if prefix is None:
            return tensors
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the tensors of a file into a network; every parameter and buffer must be there, with its
    shape.

    Absent `num_batches_tracked` are fine, and so is one name of a parameter that has several.

    Raises:
        UserError: an unreadable file, or names or shapes that differ (which first, and how many).
    """
    tensors = read_weights(path)
    own = {
        key: value
        for key, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    given = {id(own[key]) for key in tensors if key in own}
    absent = (key for key in own if key not in tensors and not _optional(key))
    missing = [key for key in absent if id(own[key]) not in given]
    unknown = [key for key in tensors if key not in own and not _optional(key)]
    if missing or unknown:
        raise UserError(f"{path} does not fit the network: {_difference(missing, unknown)}")
    wrong = [key for key, value in tensors.items() if key in own and value.shape != own[key].shape]
    if wrong:
        found, wanted = list(tensors[wrong[0]].shape), list(own[wrong[0]].shape)
        raise UserError(
            f"{path} does not fit the network: {len(wrong)} shapes differ, first {wrong[0]}, "
            f"{found} in the file and "
            f"{wanted} in the network"
        )
    module.load_state_dict(tensors, strict=False)


def _optional(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _difference(missing: list[str], unknown: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} of the network's tensors, first '{missing[0]}'")
    if unknown:
        parts.append(f"it has {len(unknown)} the network does not know, first '{unknown[0]}'")
    return ", and ".join(parts)


def refuse_bad_values(network: nn.Module | ExportedProgram, where: str) -> None:
    """Raise a UserError that names the first parameter or buffer with NaN in it, or infinite
    weights or running statistics.

    Infinite constants are let through: attention masks hold -inf by design.
    """
    lazy = torch.nn.parameter.is_lazy
    named: list[tuple[str, Tensor, bool]] = [
        (name, value, True) for name, value in network.named_parameters()
    ]
    named += [
        (name, value, name.endswith(("running_mean", "running_var")))
        for name, value in network.named_buffers()
    ]
    for name, value, weight in named:
        if lazy(value):
            raise UserError(
                f"'{name}' in {where} has no shape yet: call the network once before handing it "
                "over"
            )
        if value.is_meta:
            raise UserError(
                f"'{name}' in {where} is on the meta device and has no values: build it on the CPU"
            )
        if value.is_floating_point() and value.element_size() >= 2:
            bad = int((~torch.isfinite(value) if weight else torch.isnan(value)).sum())
            if bad:
                raise UserError(
                    f"'{name}' in {where} holds {bad} NaN or infinite values of {value.numel()}: "
                    "use weights from "
                    "before training diverged"
                )
