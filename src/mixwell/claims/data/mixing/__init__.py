"""Claims of mixture predictors."""
