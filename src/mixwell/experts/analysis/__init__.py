"""Analysis: from a `Routing` or from expert weights to a small dict of plain data. The contract is in `_parts`."""
