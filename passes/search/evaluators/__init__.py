"""Evaluators: they give a proposed structure a score on data."""
