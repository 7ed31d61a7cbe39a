"""From the options of a command to a captured network."""

from __future__ import annotations

import argparse

import torch

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models.source import LoadedModel, is_model_file, load_model
from pruneopt.models.workload import Workload

__all__ = ["captured", "check_device", "early_model", "loaded_model", "loaded_workload"]


def check_device(device: str) -> None:
    """Raise `UserError` for a --device that cannot be used."""
    try:
        torch.empty(1, device=device).item()  # the meta device has no numbers
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used: {reason}") from error


def loaded_model(options: argparse.Namespace) -> LoadedModel:
    """Load the network that MODEL, --weights and --input name; `UserError` for anything wrong with
    them."""
    return load_model(
        options.model,
        weights=options.weights,
        input_shape=options.input,
        trusted=options.trust,
    )


def early_model(options: argparse.Namespace) -> LoadedModel | None:
    """Load the network before passes are read, where it is a file of the user, which may register
    some; None for others, so that a mistake in the options is answered at once."""
    return loaded_model(options) if is_model_file(options.model) else None


def captured(loaded: LoadedModel, *, check: bool = False) -> Graph:
    """Return the network's graph, under the name of its source; with ``check`` compared with the
    network itself."""
    return capture(loaded.module, loaded.example_inputs, name=loaded.name, check=check)


def loaded_workload(
    options: argparse.Namespace, loaded: LoadedModel, needed_by: str | None
) -> Workload | None:
    """Return the data to score and train with; None where nobody names any, and nothing
    (``needed_by``) needs them."""
    if options.data is None and loaded.data is None:
        if needed_by is not None:
            raise UserError(
                f"{needed_by} needs data: give --data, or a model file that names its data"
            )
        return None
    workload = loaded.workload(options.data, seed=options.seed)
    if len(loaded.example_inputs) == 1:
        inputs, _ = next(workload.calibration.batches(1))
        wanted, given = tuple(loaded.example_inputs[0].shape[1:]), tuple(inputs.shape[1:])
        if wanted != given:
            raise UserError(
                f"{workload.name} gives inputs of shape {given}, but the network's example has "
                f"{wanted}"
            )
    return workload
