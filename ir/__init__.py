"""The graph of a network: its values and types, running it, and checking that it holds together.

The rooms below bring graphs in and out: capture, text, codegen, export.
"""
