"""The backend of 2:4 tensor cores, for many rows on a GPU."""
