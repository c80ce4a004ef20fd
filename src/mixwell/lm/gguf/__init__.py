"""GGUF files: models of llama.cpp, read with their tokenizers."""
