"""Fronts of accuracy against costs: the exploration, its file, and a plan for any of its points."""
