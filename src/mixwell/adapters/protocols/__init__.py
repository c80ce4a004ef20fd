"""Ways to adapt that are more than an adapter: whose text, whose model, in what order."""
