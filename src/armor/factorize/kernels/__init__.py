"""One file a backend of the core sweep; `reference` is the oracle the others are tested against."""
