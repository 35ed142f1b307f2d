"""Learners on a frozen, pre-trained vision transformer."""
