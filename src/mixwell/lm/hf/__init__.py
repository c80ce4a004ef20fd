"""Hugging Face's decoders as tables: how their config keys and tensor names map onto mixwell's."""
