"""The Triton backend: kernels for a few rows on a GPU."""
