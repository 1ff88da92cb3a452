"""Factorising one matrix. Knows tensors only: no Hugging Face, no disks."""
