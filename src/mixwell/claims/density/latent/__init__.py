"""Claims of the family density.latent."""
