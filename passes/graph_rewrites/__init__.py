"""Graphs made of graphs: slicing and its proof, and batch norms folded into other layers."""
