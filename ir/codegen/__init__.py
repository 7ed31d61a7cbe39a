"""From a graph to a plain PyTorch module: its source, and the module that the source makes."""
