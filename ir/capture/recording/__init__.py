"""Capture without torch.export: one run of the model on tensors without data, written down.

The private names of torch that this relies on are listed in `torch_internals`.
"""
