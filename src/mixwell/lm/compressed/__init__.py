"""Folders of quantised weights as the package compressed-tensors lays them out; transformers and vLLM read them."""
