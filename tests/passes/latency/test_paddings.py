"""Files at any widths of a network whose shortcut pads zeros on both sides of the channels."""

import io

import numpy as np
import onnx
from torch import Tensor, nn, zeros
from torch.nn.functional import pad

from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.latency.onnx_family import OnnxFamily, leading_plan
from pruneopt.passes.targets.ort_targets import OrtCPU
from pruneopt.passes.targets.target import parse_target


class Padded(nn.Module):
    """Eight channels and a shortcut to twenty: six zeros before them, and six behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 20, 3, padding=1),
            nn.Linear(20, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x) + pad(x, (0, 0, 0, 0, 6, 6))
        found: Tensor = self.last(x.relu().mean((2, 3)))
        return found


def test_the_padding_of_a_file_is_what_the_units_on_both_sides_come_to() -> None:
    graph = capture(Padded().eval(), zeros(2, 3, 6, 6))
    cost, target = CostModel(graph, couple(graph)), parse_target("ort-cpu")
    assert isinstance(target, OrtCPU)
    family = OnnxFamily(cost, lambda cut, path: target.write(cut, cut.weights, path))
    for widths in (cost.full, cost.minimum, (cost.full + cost.minimum) // 2):
        made = onnx.shape_inference.infer_shapes(
            onnx.load(io.BytesIO(family.at(widths))), strict_mode=True
        )
        cut = slice_graph(graph, cost.coupling, leading_plan(cost, widths))
        own = sorted(
            value.type.shape(1)[1] for op in cut.ops for value in op.results if value.type.rank == 4
        )
        shapes = [value.type.tensor_type.shape.dim for value in made.graph.value_info]
        assert {shape[1].dim_value for shape in shapes if len(shape) == 4} == set(own), np.array(
            widths
        )
