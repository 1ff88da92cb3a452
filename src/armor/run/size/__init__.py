"""``--size``: what becomes of each layer, within so many bytes in all, by what it is worth."""
