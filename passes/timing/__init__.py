"""Clocks, sessions timed in turns, and intervals for the times."""
