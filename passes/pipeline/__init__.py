"""Pipelines of passes: the state that they change, base class, names, text and instruments."""
