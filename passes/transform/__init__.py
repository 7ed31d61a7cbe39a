"""The passes that work on what a plan left: couple, cost, slice, verify, statistics, training."""
