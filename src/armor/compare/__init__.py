"""Pruning one model in several ways, and the tables of what came out."""
