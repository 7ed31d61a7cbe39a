"""Costs as functions of the widths, by every convention and unit, and budgets for them."""
