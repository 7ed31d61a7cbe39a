"""From a PyTorch model to a graph: recorded where that is safe, through torch.export elsewhere."""
