"""Sizes that layers of `torch.nn` have by their weights, and by the ops that ran in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.apply.scope import Scope

__all__ = ["layer_sizes"]


def _shape(module: nn.Module, name: str = "weight") -> tuple[int, ...] | None:
    tensor = getattr(module, name, None)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def _linear(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"out_features": shape[0], "in_features": shape[1]}


def _bilinear(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    return (
        {}
        if shape is None
        else dict(zip(("out_features", "in1_features", "in2_features"), shape, strict=True))
    )


def _convolution(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    if shape is None:
        return {}
    ran = scope.attr("groups", Trait.CONVOLUTION)
    groups = ran if isinstance(ran, int) else int(module.groups)  # type: ignore[arg-type]
    flipped = isinstance(module, nn.modules.conv._ConvTransposeNd)
    sizes = (shape[0], shape[1] * groups) if flipped else (shape[1] * groups, shape[0])
    return {"groups": groups, "in_channels": sizes[0], "out_channels": sizes[1]}


def _batch_norm(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module) or _shape(module, "running_mean")
    return {"num_features": scope.channels() if shape is None else shape[0]}


def _group_norm(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    groups = scope.attr("num_groups", Trait.NORM)
    return {"num_channels": scope.channels() if shape is None else shape[0], "num_groups": groups}


def _layer_norm(module: nn.Module, scope: Scope) -> dict[str, Any]:
    ran = scope.attr("normalized_shape", Trait.NORM)
    return {"normalized_shape": _shape(module) or ran}


def _embedding(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"num_embeddings": shape[0], "embedding_dim": shape[1]}


def _prelu(module: nn.Module, scope: Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"num_parameters": shape[0]}


def _attention(module: nn.Module, scope: Scope) -> dict[str, Any]:
    assert isinstance(module, nn.MultiheadAttention)
    packed, query = _shape(module, "in_proj_weight"), _shape(module, "q_proj_weight")
    if packed is not None:
        width, inner = packed[1], packed[0] // 3
        found = {"kdim": width, "vdim": width}
    elif query is not None:
        inner, width = query
        key, value = _shape(module, "k_proj_weight"), _shape(module, "v_proj_weight")
        found = {"kdim": key[1], "vdim": value[1]} if key and value else {}
    else:
        return {}
    return {"embed_dim": width, "head_dim": inner // module.num_heads, **found}


def _recurrent(module: nn.Module, scope: Scope) -> dict[str, Any]:
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    inputs, recurrent = _shape(module, f"weight_ih{layer}"), _shape(module, f"weight_hh{layer}")
    if inputs is None or recurrent is None:
        return {}
    gates = (
        4
        if isinstance(module, nn.LSTM | nn.LSTMCell)
        else 3
        if isinstance(module, nn.GRU | nn.GRUCell)
        else 1
    )
    found = {"input_size": inputs[1], "hidden_size": inputs[0] // gates}
    return {**found, "proj_size": recurrent[1]} if getattr(module, "proj_size", 0) else found


def _unflatten(module: nn.Module, scope: Scope) -> dict[str, Any]:
    sizes = scope.attr("sizes", Trait.VIEW)
    return {} if not isinstance(sizes, tuple) else {"unflattened_size": sizes}


LAYERS: tuple[tuple[Any, Callable[[nn.Module, Scope], dict[str, Any]]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.Unflatten, _unflatten),
)


def layer_sizes(module: nn.Module, scope: Scope) -> dict[str, Any]:
    """Return attributes and their values, None where nothing is known; empty for other modules."""
    return next((rule(module, scope) for kind, rule in LAYERS if isinstance(module, kind)), {})
