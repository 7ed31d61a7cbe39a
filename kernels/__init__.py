"""Fused operations that evaluate many candidates at once: Triton kernels, each with a reference in
PyTorch that runs anywhere."""
