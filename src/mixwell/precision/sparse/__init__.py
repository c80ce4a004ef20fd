"""Training towards zeros: masks that are learnt, that come little by little, or that thin the whole stream."""
