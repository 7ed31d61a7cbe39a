"""Settings that every test shares."""

import os

# Before torch is imported: tests run side by side, and more threads than cores make each of them
# slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis

# The first example pays for importing torch.
hypothesis.settings.register_profile("pruneopt", deadline=None)
hypothesis.settings.load_profile("pruneopt")
