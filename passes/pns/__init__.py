"""Files of pns, the Network Slimming package of `Sanster/pytorch-network-slimming`: its schemas and
its results."""
