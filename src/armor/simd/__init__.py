"""Vector instructions for Numba kernels, and what the processor can do."""
