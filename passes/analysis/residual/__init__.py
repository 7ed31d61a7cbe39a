"""The residual structure of a network, found once in `structure`, and what searches, GReg,
hypernetworks and depth pruning ask of it."""
