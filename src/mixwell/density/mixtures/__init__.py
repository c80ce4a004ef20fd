"""Mixture models fitted by expectation-maximisation, with scikit-learn's conventions."""

from mixwell.density import _options as _options  # says what to install where scikit-learn is missing
