"""Scores of units: what a criterion is, and the built-in criteria."""
