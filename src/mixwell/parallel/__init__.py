"""Many processes, one answer: what they send each other, and how a model is trained or laid out over them."""
