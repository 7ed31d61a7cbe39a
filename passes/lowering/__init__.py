"""The evaluation of a network as fused operations on the kernels, a buffer for every value."""
