"""Searchers: they propose structures, for the best one or for a front, inside the budgets."""
