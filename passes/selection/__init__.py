"""The choice of which channels or weights stay: widths under budgets, ratios by layer, masks."""
