"""Claims of methods that make a data set small."""
