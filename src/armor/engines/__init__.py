"""Where jobs run: in this process, in worker processes, on a Ray cluster.

Nothing here knows of pruning.
"""
