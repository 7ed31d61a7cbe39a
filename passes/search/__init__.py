"""Searches for a plan: a searcher proposes structures, an evaluator scores them, a ranking compares
them, and a journal keeps every result."""
