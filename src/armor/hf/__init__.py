"""transformers: with this, ``from_pretrained`` loads an armor checkpoint."""
