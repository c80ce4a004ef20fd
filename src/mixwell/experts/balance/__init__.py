"""Balance rules: from a `Routing` to a scalar loss. The contract is in `_parts`."""
