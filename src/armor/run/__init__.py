"""A pruning run: plan, then block by block moments, targets and factors, then the checkpoint."""
