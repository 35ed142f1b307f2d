"""Classifiers on features: prototypes, ridge regression, experts."""
