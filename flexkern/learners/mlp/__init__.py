"""Learners with the multi-layer perceptron of the metaplasticity paper."""
