"""Bundles: the folders that `pruneopt compile` writes, and what loading them back must give."""
