"""Mixtures of latent codes: slots that divide a set, and mixtures inside auto-encoders."""
