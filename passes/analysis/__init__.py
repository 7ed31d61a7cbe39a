"""Facts about a graph: which channels go together, what widths cost, how much units matter."""
