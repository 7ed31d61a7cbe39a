"""Weights of a cut network made better without training: biases and least squares."""
