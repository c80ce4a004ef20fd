"""This library's kernels inside transformers' own models."""
