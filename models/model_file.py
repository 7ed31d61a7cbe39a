"""A user's model file: `load_model("model.py")`.

The file defines, in the simplest case,

    model = Net()                    # or a function make_model() that returns the network
    input_shape = (1, 3, 224, 224)   # or example_inputs: a tuple of tensors, or what returns one

and, if it likes, what to score and train with:

    data = "folder:photos"           # see pruneopt.models.data; relative to the file's folder
    def data(): return train, test   # or data sets of your own; see pruneopt.models.user_data
    def loss(outputs, targets): ...  # a scalar; cross-entropy if absent
    def metric(outputs, targets): ...  # one score per sample, larger is better; top-1 if absent
    def evaluate(model): ...         # a number, larger is better: your own test, at the end

and, where the whole network cannot be captured, or takes or returns something else than tensors,
the part to prune:

    def forward(model, images): ...  # called in place of the network's own, with example inputs

What code outside of this part reads (the features that boxes are cut out of) has to be among the
outputs of `forward`.

Ops, passes and parts that the file registers (`register_op`, `register_pass` and `register_part` of
`pruneopt.extend`) are there for the command that reads it.

`model.py:name` takes another network or factory than the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.calling import replace_forward
from pruneopt.errors import UserError
from pruneopt.models.spec import checked_shape, did_you_mean
from pruneopt.models.user_code import UserFile
from pruneopt.models.workload import Loss, Metric, Workload

__all__ = ["DataSource", "ModelFile", "read_model_file"]

DataSource = str | Callable[[], object] | Workload


@dataclass(frozen=True)
class ModelFile:
    """The definitions of a model file; None for what it leaves out. `factory` is what `module` came
    from."""

    path: Path
    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    factory: object
    data: DataSource | None
    loss: Loss | None
    metric: Metric | None
    evaluate: Callable[[nn.Module], float] | None


def read_model_file(
    path: Path, factory: str, options: dict[str, Any], *, input_shape: tuple[int, ...] | None
) -> ModelFile:
    """Run a model file and its factory.

    Args:
        path: the file.
        factory: a name in it; empty for `model`, else `make_model`.
        options: keyword arguments for the factory.
        input_shape: takes the place of the file's example inputs.

    Raises:
        UserError: whatever is wrong with the file, with its line.
    """
    file = UserFile(path)
    name = factory or _default_name(file)
    if not hasattr(file.module, name):
        raise UserError(
            f"{file.path.name} defines no '{name}': {did_you_mean(name, _own_names(file))}"
        )
    found = getattr(file.module, name)
    evaluate = _function(file, "evaluate")
    module = _network(file, name, found, options)
    forward = _function(file, "forward")
    if forward is not None:
        replace_forward(module, forward)
    return ModelFile(
        path=file.path,
        module=module,
        example_inputs=(torch.randn(input_shape),) if input_shape else _example_inputs(file),
        factory=type(found) if isinstance(found, nn.Module) else found,
        data=_data(file),
        loss=_function(file, "loss"),
        metric=_function(file, "metric"),
        evaluate=file.bound(evaluate) if evaluate else None,
    )


def _default_name(file: UserFile) -> str:
    for name in ("model", "make_model"):
        found = getattr(file.module, name, None)
        # A file may also import a package that happens to be called model.
        if found is not None and not isinstance(found, ModuleType):
            return name
    own = _own_names(file)
    hint = f", or name one of {', '.join(own)} as {file.path.name}:{own[0]}" if own else ""
    raise UserError(f"{file.path.name} defines neither 'model' nor 'make_model': add one{hint}")


def _own_names(file: UserFile) -> list[str]:
    """Return the networks of a file, and the functions and classes it defines itself."""
    own = file.module.__name__
    named = vars(file.module).items()
    return [
        key
        for key, value in named
        if isinstance(value, nn.Module) or getattr(value, "__module__", None) == own
    ]


def _network(file: UserFile, name: str, found: object, options: dict[str, Any]) -> nn.Module:
    built = found
    if isinstance(found, nn.Module):
        if options:
            raise UserError(
                f"{file.at(name)}: '{name}' is a finished network and takes no options: name a "
                "function"
            )
    elif callable(found):
        built = file.run(f"while '{name}' was called", lambda: found(**options))
    if isinstance(built, nn.DataParallel | nn.parallel.DistributedDataParallel):
        built = built.module
    built = getattr(built, "_orig_mod", built)  # what torch.compile wraps
    if isinstance(built, torch.jit.ScriptModule):
        raise UserError(
            f"{file.at(name)}: '{name}' is TorchScript: give the Python module it was made from"
        )
    if not isinstance(built, nn.Module):
        verb = "returns" if callable(found) else "is"
        raise UserError(
            f"{file.at(name)}: '{name}' {verb} a {type(built).__name__}, it must be a "
            "torch.nn.Module"
        )
    return built if any(value.is_meta for value in built.parameters()) else built.cpu()


def _example_inputs(file: UserFile) -> tuple[Tensor, ...]:
    found = getattr(file.module, "example_inputs", None)
    if found is None:
        shape = getattr(file.module, "input_shape", None)
        if shape is None:
            raise UserError(
                f"{file.path.name} has no example_inputs and no input_shape: add one, such as (1, "
                "3, 224, 224)"
            )
        return (torch.randn(checked_shape(f"{file.at('input_shape')}: input_shape", shape)),)
    if callable(found) and not isinstance(found, Tensor):
        found = file.run("while example_inputs was called", found)
    inputs = (found,) if isinstance(found, Tensor) else found
    if (
        not isinstance(inputs, tuple | list)
        or not inputs
        or not all(isinstance(item, Tensor) for item in inputs)
    ):
        raise UserError(f"{file.at('example_inputs')}: example_inputs must be a tuple of tensors")
    return tuple(item.cpu() for item in inputs)


def _data(file: UserFile) -> DataSource | None:
    found: object = getattr(file.module, "data", None)
    if found is None or isinstance(found, ModuleType):  # a package of that name, not our word
        return None
    if isinstance(found, str | Workload):
        return found
    if callable(found):
        return file.bound(found)
    raise UserError(
        f"{file.at('data')}: data must be a data spec or a function, not a {type(found).__name__}"
    )


def _function(file: UserFile, name: str) -> Callable[..., Any] | None:
    found: object = getattr(file.module, name, None)
    if found is None or isinstance(found, ModuleType):
        return None
    if not callable(found):
        raise UserError(f"{file.at(name)}: {name} must be a function, not a {type(found).__name__}")
    return found
