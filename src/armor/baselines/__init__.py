"""One-shot pruning methods without wrappers, each ``name(problem, pattern) -> Factors``.

`armor.methods` lists them.
"""
