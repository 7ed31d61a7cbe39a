"""Training under a penalty that drives channels or weights to zero: Network Slimming, GReg."""
