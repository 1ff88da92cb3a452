"""Measuring the runtime: layers by shape and batch, and whole models."""
