"""How many rows of a block the kernels for GPUs move at once."""

#: Rows of a set, see `reference.sweep_block`. One order of the sweep for every GPU: another number
#: gives another result.
ROWS_TOGETHER = 8
