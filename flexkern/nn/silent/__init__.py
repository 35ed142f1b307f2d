"""Layers of which some synapses are silent until what they connect is active together."""
