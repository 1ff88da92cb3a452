"""Measuring a model: perplexity on text, and comparisons of pruning settings."""
