"""Loss as a function of the weights of domains, from a table of runs; and the weights of least predicted loss."""
