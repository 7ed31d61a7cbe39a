"""Rewrites before ONNX export: forms that torch's translation and onnxruntime get right."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["keep_padding", "lay_out_attention", "name_batch"]


def lay_out_attention(program: ExportedProgram) -> None:
    """Bring every attention to four axes, and its result into one block.

    The copies are nothing in ONNX.

    torch's translation knows attention over four axes only. And it takes it apart only after it has
    made reshapes of the result to views, where the parts lay it out otherwise than the fused op:
    such a view would be refused.
    """
    graph, aten = program.graph, torch.ops.aten
    for node in [
        item for item in graph.nodes if item.target is aten.scaled_dot_product_attention.default
    ]:
        shape, moved = node.meta["val"].shape, _can_move(node)
        if moved:
            operands = [item for item in node.args if isinstance(item, Node)]
            with graph.inserting_before(node):
                four = {item: _over_four_axes(graph, item, len(shape)) for item in operands}
            node.args = tuple(
                four.get(item, item) if isinstance(item, Node) else item for item in node.args
            )
        with graph.inserting_after(node):
            end = copy = graph.call_function(
                aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
            )
        if moved:
            with graph.inserting_after(copy):
                end = graph.call_function(aten.reshape.default, (copy, [-1, *shape[1:]]))
        for made in (copy, end):
            made.meta = {**node.meta, "val": node.meta["val"].contiguous()}
        node.replace_all_uses_with(end, delete_user_cb=lambda user, own=copy: user is not own)
    program.graph_module.recompile()


def _can_move(node: Node) -> bool:
    """Tell whether an attention over other axes than four is easily brought to four.

    That goes for its mask, too: nothing is broadcast, and only the first size varies.
    """
    shape = node.meta["val"].shape
    operands = [
        item.meta["val"].shape
        for item in (*node.args, *node.kwargs.values())
        if isinstance(item, Node)
    ]
    alike = all(len(item) == len(shape) and item[:-2] == shape[:-2] for item in operands)
    positional = not any(isinstance(item, Node) for item in node.kwargs.values())
    return (
        len(shape) != 4
        and alike
        and positional
        and all(isinstance(size, int) for size in shape[1:])
    )


def _over_four_axes(graph: Graph, node: Node, rank: int) -> Node:
    """Return an operand of attention with one axis more, or all in front of the heads in one."""
    if rank == 3:
        made = graph.call_function(torch.ops.aten.unsqueeze.default, (node, 1))
        made.meta = {**node.meta, "val": node.meta["val"].unsqueeze(1)}
    else:
        made = graph.call_function(torch.ops.aten.flatten.using_ints, (node, 0, rank - 4))
        made.meta = {**node.meta, "val": node.meta["val"].flatten(0, rank - 4)}
    return made


def name_batch(model: ModelProto) -> None:
    """Call the symbolic first dimension ``batch`` wherever the file names it."""
    graph = model.graph
    dims = [
        dim
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dim in value.type.tensor_type.shape.dim
    ]
    symbol = next(
        (
            v.type.tensor_type.shape.dim[0].dim_param
            for v in graph.input
            if v.type.tensor_type.shape.dim
        ),
        "",
    )
    if not symbol.isidentifier():
        return
    for dim in dims:
        if dim.dim_param:
            dim.dim_param = re.sub(rf"\b{symbol}\b", "batch", dim.dim_param)


def keep_padding(model: ModelProto) -> None:
    """Replace zeros in front of a max pooling by the smallest number above zero.

    onnxruntime (1.31) takes padding with zeros into the pooling behind it, which then pads with
    minus infinity: wrong where all that is pooled with a zero is negative.
    """
    from onnx import numpy_helper

    graph = model.graph
    values = {item.name: item for item in graph.initializer}
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    for node in graph.node:
        if node.op_type != "Pad" or not pooled & set(node.output) or len(node.input) < 3:
            continue
        value = numpy_helper.to_array(values[node.input[2]]) if node.input[2] in values else None
        if value is not None and value.dtype.kind == "f" and value.size == 1 and not value.any():
            name = f"{node.output[0]}_padding"
            graph.initializer.append(
                numpy_helper.from_array(np.nextafter(value, np.ones_like(value)), name)
            )
            node.input[2] = name
