"""Whole residual branches: ranked, dropped, and the proof of what is left."""
