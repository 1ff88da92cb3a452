"""The pruned matrix itself: patterns, factors, and the packed form. Knows tensors only."""
