"""Which examples to keep: features and losses of a pool in, indices and weights out."""
