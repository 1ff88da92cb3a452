"""Measuring one model: perplexity, divergence from another model, tasks."""
