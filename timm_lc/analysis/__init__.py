"""Measures of filters and of robustness, as in the paper's figures."""
