"""The table of ops: every name once, of an op that exists, with what its fields promise."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pruneopt.ir.graph import Op, Value
from pruneopt.ir.types import TensorType
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import FAMILIES, OPS, UNKNOWN, definition_of, has_trait

ELSEWHERE = {"deform_conv2d"}
"""Of torchvision's library."""


def test_no_op_is_of_two_families() -> None:
    names = Counter(name for family in FAMILIES for name in family.DEFINITIONS)
    assert [name for name, count in names.items() if count > 1] == []
    assert set(names) == {name for name in OPS if "." not in name}


def test_every_name_is_an_op() -> None:
    own = {name for name in OPS if "." not in name}  # others are users' ops, of other tests
    assert {name for name in own if not hasattr(torch.ops.aten, name)} == ELSEWHERE


def test_what_an_op_like_another_must_have_is_what_that_one_has() -> None:
    for name, known in OPS.items():
        packet = getattr(torch.ops.aten, name, None)
        arguments = {
            argument.name
            for form in (packet.overloads() if packet is not None else ())
            for argument in getattr(packet, form)._schema.arguments
        }
        assert set(known.needs or ()) <= arguments, name


def test_a_convolution_is_known_all_round() -> None:
    for name, known in OPS.items():
        if Trait.CONVOLUTION in known.traits:
            assert None not in (known.rule, known.resize), name


def op_of(target: str) -> Op:
    value = Value("y", TensorType("f32", (2,)), "result")
    return Op(target, (), {}, (value,))


@pytest.mark.parametrize(
    ("target", "trait"),
    [
        ("aten.relu.default", Trait.ACTIVATION),
        ("aten.conv_transpose2d.input", Trait.CONVOLUTION),
        ("aten.randn_like.default", Trait.RANDOM),
    ],
)
def test_an_op_is_asked_by_its_role(target: str, trait: Trait) -> None:
    assert has_trait(op_of(target), trait)


def test_ops_that_no_family_names() -> None:
    """An element-by-element op needs no entry; nothing is known of any other, nor of an op of
    another library that has the name of PyTorch's."""
    assert "erfinv" not in OPS
    assert definition_of(op_of("aten.erfinv.default")).rule is not None
    assert definition_of(op_of("aten.linalg_svd.default")) is UNKNOWN
    assert definition_of(op_of("mylib.conv2d.default")) is UNKNOWN
