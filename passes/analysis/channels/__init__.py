"""Channels that go together: labels, units, groups, and what users ask of them by name."""
