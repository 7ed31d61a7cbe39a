"""The PruningNet of MetaPruning: hypernetworks that make the weights of every structure."""
