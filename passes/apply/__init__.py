"""A user's own module, slimmed in place: its parameters, optimiser and attributes, and the proof
that it still computes what the pruned network computes."""
