"""Overflow rules: what happens to tokens that an expert has no room for. The contract is in `_parts`."""
