"""The `mixwell` command."""
