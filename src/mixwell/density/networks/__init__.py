"""Networks that read or write mixtures, and predictors on a posterior that was learnt without labels."""
