"""Structured matrices in the place of dense linear maps. The contract is `mixing.structured.Structured`."""
