"""``--size``: the block of each layer, within so many bytes in all, by what it is worth."""
