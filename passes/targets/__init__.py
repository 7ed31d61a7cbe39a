"""Runtimes on devices: a target loads a network as a session, which is timed."""
