"""Mixture models fitted by expectation-maximisation, with scikit-learn's conventions."""
