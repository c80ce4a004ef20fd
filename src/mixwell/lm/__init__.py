"""A language model assembled from the rooms: model, tokenizer, data, training, evaluation, sampling, files."""
