"""Rules that choose domains while a model trains: losses of a batch in, weights of the domains out."""
