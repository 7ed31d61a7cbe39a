"""Rules for the ops of your own libraries; see docs/custom-ops.md."""

from pruneopt.passes.analysis.ops.custom_ops import (
    elementwise,
    like,
    moves,
    per_channel,
    register_op,
)

__all__ = ["elementwise", "like", "moves", "per_channel", "register_op"]
