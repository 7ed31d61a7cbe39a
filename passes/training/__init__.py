"""Training on Lightning Fabric: the loop, recipes, hooks, checkpoints, and training in a pass."""
