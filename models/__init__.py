"""Networks and data: models by name or from a file, weights, and workloads."""
