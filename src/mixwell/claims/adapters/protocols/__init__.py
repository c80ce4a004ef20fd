"""Claims of protocols of adapting."""
