"""Reading the torch.fx graph of an exported program into a `Graph`.

In-place ops become functional ones where nothing else views the tensor; sizes that depend on the
batch become expressions in ``N``; flags that follow the module's mode become ``mode``; a branch
without gradients is detached.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pruneopt.errors import UserError
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.reading.source_lines import user_frame
from pruneopt.ir.graph import Graph, Op, Operand, Structure, Value, ValueKind
from pruneopt.ir.schema import DTYPE_NAMES, admit, overload, scalar_to_attr, signature
from pruneopt.ir.types import DEVICE, MODE, Attr, BatchSize, Dim, Location, TensorType

__all__ = [
    "RECURRENT",
    "NeedsFunctionalizationError",
    "NotDynamicError",
    "ProgramReader",
    "read_program",
]

MAYBE_VIEWS = ("reshape", "contiguous", "to", "flatten", "dropout")
# Whether this machine has cuDNN is no property of the network.
BACKEND_FLAGS = ("cudnn_enabled", "cudnn_enable")
MODE_FLAGS = ("training", "train", "use_input_stats")
VIEWS = ("aten.view.default", "aten._unsafe_view.default")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
RECURRENCES = tuple(f"aten.{name}.input" for name in RECURRENT)
IGNORED_OPS = ("_assert", "sym_constrain", "_set_grad_enabled", "_exit_autocast", "_enter_autocast")


_BATCH = sympy.Symbol("N", integer=True, positive=True)


class NotDynamicError(Exception):
    """The batch size cannot stay symbolic; the message says why."""


class NeedsFunctionalizationError(Exception):
    """An in-place op writes into a tensor that is read again through another view."""


def read_program(
    program: ExportedProgram, modules: ModuleTable | None, name: str, notes: tuple[str, ...]
) -> Graph:
    """Read an exported program; functionalised first if an in-place op cannot be undone locally."""
    try:
        return ProgramReader(program, modules, name).read(notes)
    except NeedsFunctionalizationError:
        # Functionalisation takes dropout in evaluation mode for the identity.
        drops = [
            node
            for node in program.graph.nodes
            if "dropout" in str(node.target) and node.args[1] != 0
        ]
        if drops:
            notes = (
                *notes,
                f"dropout is left out of a network with in-place writes into views ({len(drops)} "
                "calls)",
            )
        return ProgramReader(program.run_decompositions({}), modules, name).read(notes)


@dataclass
class ProgramReader:
    """Reads the torch.fx graph of an exported program into a `Graph`."""

    program: ExportedProgram
    modules: ModuleTable | None
    name: str
    graph: Graph = field(init=False)
    env: dict[torch.fx.Node, Any] = field(default_factory=dict)
    root: dict[Value, Value] = field(default_factory=dict)
    """Value -> the value whose memory it views."""
    no_grad: set[Value] = field(default_factory=set)
    grad_enabled: bool = True
    symbols: dict[sympy.Symbol, sympy.Symbol] = field(default_factory=dict)
    """The first dimension of every input -> ``N``."""
    calls: list[torch.fx.Node] = field(default_factory=list)
    """The nodes whose subgraphs are being read."""

    def read(self, notes: tuple[str, ...]) -> Graph:
        self.graph = Graph(self.name)
        if (
            self.program.graph_signature.buffers_to_mutate
            or self.program.graph_signature.user_inputs_to_mutate
        ):
            raise UserError(
                f"{self.name} changes a buffer or an input in evaluation mode, which a graph "
                "cannot hold"
            )
        self._declare_weights()
        self._walk(self.program.graph_module)
        self._drop_unused(notes)
        return self.graph

    # Inputs and weights

    def _declare_weights(self) -> None:
        sig = self.program.graph_signature
        kinds: list[tuple[Mapping[str, str], ValueKind]] = [
            (sig.inputs_to_parameters, "param"),
            (sig.inputs_to_buffers, "buffer"),
            (sig.inputs_to_lifted_tensor_constants, "constant"),
        ]
        owner = {
            node: (target, kind) for mapping, kind in kinds for node, target in mapping.items()
        }
        canonical = self.modules.canonical_names() if self.modules else {}
        tensors: dict[str, torch.Tensor] = {**self.program.state_dict, **self.program.constants}
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name not in owner:
                self._declare_input(node)
                continue
            target, kind = owner[node.name]
            first = canonical.get(target, target)
            if first != target:
                self.graph.aliases[target] = first
            if first not in self.graph.params:
                self.graph.add_param(first, self._type(node.meta["val"]), kind)
                self.graph.weights[first] = tensors[target].detach()
                if kind == "param" and not tensors[target].requires_grad:
                    self.graph.without_grad |= {first}
            self.env[node] = self.graph.params[first]

    def _declare_input(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            if value.dim() and isinstance(value.shape[0], torch.SymInt):
                self.symbols |= dict.fromkeys(value.shape[0].node.expr.free_symbols, _BATCH)
            self.env[node] = self.graph.add_input(node.name, self._type(value))
        else:
            self.env[node] = value

    def _drop_unused(self, notes: tuple[str, ...]) -> None:
        before = [name for name, value in self.graph.params.items() if value.kind == "param"]
        self.graph.erase_dead()
        params = self.graph.params
        for name in [n for n in params if n.endswith("num_batches_tracked")]:
            if name.removesuffix("num_batches_tracked") + "running_mean" not in params:
                del params[name]
        self.graph.weights = {name: self.graph.weights[name] for name in params}
        self.graph.aliases = {
            alias: name for alias, name in self.graph.aliases.items() if name in params
        }
        unused = [name for name in before if name not in params]
        if unused:
            count = len(unused)
            notes = (
                *notes,
                f"{count} parameters play no part in evaluation and are left out (first "
                f"{unused[0]})",
            )
        self.graph.notes = notes

    # Types and sizes

    def _type(self, value: Any) -> TensorType:
        if not isinstance(value, torch.Tensor):
            return TensorType("none", ())
        if value.dtype not in DTYPE_NAMES:
            raise UserError(
                f"{self.name} holds a tensor of {value.dtype}, which has no place in the graph"
            )
        return TensorType(DTYPE_NAMES[value.dtype], tuple(self._size(size) for size in value.shape))

    def _size(self, size: Any) -> Dim:
        return int(size) if not isinstance(size, torch.SymInt) else self._batch_size(size)

    def _batch_size(self, size: torch.SymInt) -> int | BatchSize:
        """Return a symbolic size as an expression in the one batch symbol."""
        expr = size.node.expr
        if isinstance(expr, int | sympy.Integer):
            return int(expr)
        divisor = 1
        if type(expr).__name__ == "FloorDiv" and expr.args[1].is_Integer:
            divisor, expr = int(expr.args[1]), expr.args[0]
        expr = expr.xreplace(self.symbols)
        if expr.is_Integer:  # a quotient of the first sizes of two inputs
            return int(expr) // divisor
        if expr.free_symbols != {_BATCH}:
            raise NotDynamicError(f"sizes depend on more than the batch size ({expr})")
        try:
            poly = sympy.Poly(expr, _BATCH)
            scale, offset = poly.coeff_monomial(_BATCH), poly.coeff_monomial(1)
        except sympy.PolynomialError:
            raise NotDynamicError(
                f"a size is no simple multiple of the batch size ({expr})"
            ) from None
        if poly.degree() != 1 or not scale.is_Integer or not offset.is_Integer:
            raise NotDynamicError(f"a size is no simple multiple of the batch size ({expr})")
        return BatchSize(int(scale), int(offset), divisor)

    # Nodes

    def _walk(self, module: torch.fx.GraphModule) -> Any:
        """Read every node of a (sub)graph; returns what its output node holds."""
        for node in module.graph.nodes:
            if node.op == "call_function":
                self._call(node, module)
            elif node.op == "get_attr":
                self.env[node] = getattr(module, node.target)
            elif node.op == "output":
                leaves = [self._lookup(arg) for arg in node.args[0]]
                if module is self.program.graph_module:
                    self.graph.outputs = self._structure(leaves)
                return leaves
        return ()

    def _structure(self, leaves: list[Any]) -> Structure:
        spec: Any = self.program.call_spec.out_spec
        tree = pytree.tree_unflatten([_Leaf(leaf) for leaf in leaves], spec)

        def plain(item: Any) -> Structure:
            if isinstance(item, _Leaf) and isinstance(
                item.value, torch.SymInt | torch.SymFloat | torch.SymBool
            ):
                raise NotDynamicError("the network returns a number computed from the batch size")
            if isinstance(item, _Leaf):
                return (
                    self._leave_no_grad(item.value) if isinstance(item.value, Value) else item.value
                )
            if isinstance(item, Mapping):
                return {str(key): plain(child) for key, child in item.items()}
            if isinstance(item, tuple):
                return tuple(plain(child) for child in item)
            if isinstance(item, list):
                return [plain(child) for child in item]
            return tuple(plain(_Leaf(leaf)) for leaf in leaves)

        return plain(tree)

    def _lookup(self, arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            return self.env[arg]
        if isinstance(arg, tuple | list):
            return tuple(self._lookup(item) for item in arg)
        return arg

    def _call(self, node: torch.fx.Node, module: torch.fx.GraphModule) -> None:
        target: Any = node.target
        text = str(target)
        if target is operator.getitem:
            source, index = node.args
            self.env[node] = self._lookup(source)[index]
        elif isinstance(
            node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool
        ):
            self.env[node] = node.meta["val"]
        elif target is torch._C._set_grad_enabled:
            self.grad_enabled = bool(node.args[0])
        elif text == "wrap_with_set_grad_enabled":
            self._inline_no_grad(node)
        elif text == "wrap_with_autocast":
            self._inline_autocast(node)
        elif any(word in text for word in IGNORED_OPS):
            self.env[node] = None
        elif target is torch.ops.aten.alias.default:
            self.env[node] = self._lookup(node.args[0])
        elif isinstance(target, torch._ops.OpOverload):
            self._read_op(node, target)
        else:
            where = self._location(node)
            raise UserError(
                f"{text} at {where} is control flow or a Python call that a graph cannot hold"
            )

    def _inline_no_grad(self, node: torch.fx.Node) -> None:
        enabled, submodule, *args = (self._lookup(arg) for arg in node.args)
        outer, self.grad_enabled = self.grad_enabled, bool(enabled)
        self._inline(node, submodule, args)
        self.grad_enabled = outer

    def _inline_autocast(self, node: torch.fx.Node) -> None:
        """Read a region with autocast switched off as plain code; refuse one with it on.

        Such a region casts, and the graph does not say so.
        """
        device, dtype, enabled, _, submodule, *args = (self._lookup(arg) for arg in node.args)
        if enabled:
            where = self._location(node)
            what = f"autocast to {str(dtype).removeprefix('torch.')} on {device}"
            raise UserError(
                f"{what} at {where} cannot be held in a graph: switch it on around the network, "
                "not inside"
            )
        self._inline(node, submodule, args)

    def _inline(
        self, node: torch.fx.Node, submodule: torch.fx.GraphModule, args: list[Any]
    ) -> None:
        """Read a subgraph where it is called."""
        for placeholder, arg in zip(
            (n for n in submodule.graph.nodes if n.op == "placeholder"), args, strict=True
        ):
            self.env[placeholder] = arg
        self.calls.append(node)
        self.env[node] = self._walk(submodule)
        self.calls.pop()

    def _leave_no_grad(self, value: Value) -> Value:
        """Detach a value that was computed without gradients where ordinary code reads it."""
        if not self.grad_enabled or value not in self.no_grad:
            return value
        name, loc = self.graph.fresh_name("detach"), _op_of(value).loc
        return self.graph.add_op(
            "aten.detach.default", (value,), {}, [(name, value.type)], loc
        ).result

    def _read_op(self, node: torch.fx.Node, target: torch._ops.OpOverload[..., Any]) -> None:
        name = f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
        admit(name)
        written: Value | None = None
        if target._schema.is_mutable:
            name, written = self._functional(name, node)
        loc = self._location(node)
        operands, attrs = self._arguments(name, node, loc)
        value = node.meta["val"]
        if name == "aten._native_batch_norm_legit_no_training.default":
            # What functionalisation makes of batch norm in evaluation mode; the statistics it saves
            # are not read there.
            name, value = "aten.batch_norm.default", value[0]
            attrs = {"training": False, **attrs, "cudnn_enabled": True}
        if name in VIEWS:
            # Export drops `contiguous` where its own trace was contiguous; reshape is right for any
            # memory format.
            name, attrs = "aten.reshape.default", {"shape": attrs["size"]}
        attrs = self._follow_mode(attrs, loc)
        types = [
            self._type(item) for item in (value if isinstance(value, list | tuple) else [value])
        ]
        if name in RECURRENCES:
            types = _with_states_of(operands, types)
        # In-place ops are named relu_ and relu__1: the name of the functional op has no such
        # underscore.
        hint = node.name if written is None else re.sub(r"__(\d+)$", r"_\1", node.name).rstrip("_")
        hint = hint.replace("_native_batch_norm_legit_no_training", "batch_norm")
        names: list[str] = []
        for position, _ in enumerate(types):
            names.append(self._fresh(hint if len(types) == 1 else f"{hint}_{position}", names))
        op = self.graph.add_op(name, operands, attrs, list(zip(names, types, strict=True)), loc)
        if value is not node.meta["val"]:
            self.env[node] = (op.result, None, None)
        else:
            self.env[node] = op.results if isinstance(value, list | tuple) else op.result
        if not self.grad_enabled:
            self.no_grad.update(op.results)
        self._note_alias(op)
        if written is not None:
            self._overwrite(written, op.result, node)

    def _fresh(self, hint: str, taken: list[str]) -> str:
        name, number = self.graph.fresh_name(hint), 0
        while name in taken:
            number += 1
            name = self.graph.fresh_name(f"{hint}_{number}")
        return name

    def _arguments(
        self, name: str, node: torch.fx.Node, loc: Location
    ) -> tuple[list[Operand], dict[str, Attr]]:
        operands: list[Operand] = []
        attrs: dict[str, Attr] = {}
        for index, argument in enumerate(signature(name).arguments):
            given = index < len(node.args) or argument.name in node.kwargs
            raw = (
                node.args[index]
                if index < len(node.args)
                else node.kwargs.get(argument.name, argument.default)
            )
            value = self._lookup(raw) if given else raw
            if argument.is_tensor:
                operands.append(self._operand(value, name, loc))
            elif argument.name in BACKEND_FLAGS:
                attrs[argument.name] = True
            elif "Device" in argument.type:
                attrs[argument.name] = None if value is None else DEVICE
            else:
                attrs[argument.name] = self._attr(value)
        return operands, attrs

    def _operand(self, value: Any, name: str, loc: Location) -> Operand:
        if isinstance(value, Value):
            return self._leave_no_grad(value)
        if isinstance(value, tuple):
            return tuple(None if item is None else self._leave_no_grad(item) for item in value)
        if isinstance(value, torch.SymInt | torch.SymFloat):
            raise NotDynamicError(f"{name} at {loc} computes with the batch size")
        if value is None or isinstance(value, bool | int | float):
            return value
        raise UserError(
            f"{name} at {loc} takes a {type(value).__name__}, which a graph cannot hold"
        )

    def _attr(self, value: Any) -> Attr:
        if isinstance(value, torch.SymInt):
            return self._batch_size(value)
        if isinstance(value, tuple):
            return tuple(self._attr(item) for item in value)
        if isinstance(value, torch.SymFloat | torch.SymBool):
            raise NotDynamicError("an argument is computed from the batch size")
        return scalar_to_attr(value)

    def _follow_mode(self, attrs: dict[str, Attr], loc: Location) -> dict[str, Attr]:
        """Let a flag that was false in evaluation mode follow the executor's mode.

        It stays false in a module that the user froze.
        """
        flag = next((name for name in MODE_FLAGS if name in attrs), None)
        if flag is None or attrs[flag] is not False:
            return attrs
        module = self.modules.module(loc.module) if self.modules else None
        frozen = self.modules is not None and loc.module in self.modules.frozen
        # In evaluation mode nn.BatchNorm passes 0 for a momentum of None.
        cumulative = (
            "momentum" in attrs and module is not None and getattr(module, "momentum", 0.0) is None
        )
        return attrs | ({} if frozen else {flag: MODE}) | ({"momentum": None} if cumulative else {})

    # In-place ops

    def _functional(self, name: str, node: torch.fx.Node) -> tuple[str, Value]:
        """Return the functional twin of an in-place op, and the value that the op writes."""
        namespace, base, overload_name = name.split(".")
        twin = f"{namespace}.{base.removesuffix('_')}.{overload_name}"
        written = self._lookup(node.args[0]) if node.args else None
        if not base.endswith("_") or not isinstance(written, Value):
            raise NeedsFunctionalizationError
        try:
            signature(twin)
        except UserError:
            raise NeedsFunctionalizationError from None
        return twin, written

    def _note_alias(self, op: Op) -> None:
        """Remember whose memory the results view.

        Ops such as reshape view it only sometimes, and do not declare it.
        """
        returns: Any = overload(op.target)._schema.returns
        source = next(iter(op.inputs), None)
        if source is None or not (
            op.base in MAYBE_VIEWS or any(item.alias_info is not None for item in returns)
        ):
            return
        for value in op.results:
            self.root[value] = self.root.get(source, source)

    def _overwrite(self, written: Value, result: Value, node: torch.fx.Node) -> None:
        """Let later readers of the tensor that an in-place op wrote read the result."""
        # All values that view the same memory. The written one itself is replaced wherever it is
        # read, unless it is a weight or an input, whose next run would see the write.
        root = self.root.get(written, written)
        family = {v for v in (*self.root, root) if self.root.get(v, v) is root} - {result}
        others = family if root.is_weight or root.kind == "input" else family - {written}
        # A subgraph is read where it is called: what follows the calls around it counts as well.
        if others and any(
            self._reads(later, others) for outer in (node, *self.calls) for later in _later(outer)
        ):
            raise NeedsFunctionalizationError
        for key, value in list(self.env.items()):
            if value is written:
                self.env[key] = result

    def _reads(self, node: torch.fx.Node, values: set[Value]) -> bool:
        """Tell whether a node not yet read takes one of the values."""
        return any(
            isinstance(v := self.env.get(arg), Value) and v in values
            for arg in node.all_input_nodes
        )

    # Where it came from

    def _location(self, node: torch.fx.Node) -> Location:
        # From the network down to the module that made the call; "@" numbers calls of one module.
        stack = node.meta.get("nn_module_stack") or {}
        path, kind = "", ""
        if stack:
            path, kind = list(stack.values())[-1]
            kind = kind if isinstance(kind, str) else kind.__name__
        file, line = user_frame(node.meta.get("stack_trace") or "")
        return Location(path.split("@")[0], kind.rsplit(".", 1)[-1], file, line)


@dataclass
class _Leaf:
    value: Any


def _later(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Iterate over the nodes behind ``node`` in its graph."""
    node = node.next
    while node.op != "root":
        yield node
        node = node.next


def _op_of(value: Value) -> Op:
    if value.producer is None:
        raise UserError(f"{value} has no producer")
    return value.producer


def _with_states_of(operands: Sequence[Operand], types: list[TensorType]) -> list[TensorType]:
    """Give the last states of a recurrence the types of its first states.

    Torch 2.11 adds an axis to them.
    """
    states = operands[1] if isinstance(operands[1], tuple) else (operands[1],)
    return [types[0], *(state.type for state in states if isinstance(state, Value))]
