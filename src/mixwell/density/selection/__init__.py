"""How many components a mixture should have."""
