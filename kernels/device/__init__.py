"""The code that runs on the GPU, in Triton."""
