"""Layers of which some synapses are silent until they are driven hard enough."""
