"""Artificial synapses: which task's adapter a sample opens."""
