"""From a module to ``torch.export`` and ONNX files, and running these."""
