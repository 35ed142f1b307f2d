"""Linear layers whose backward pass steps the weight and writes no gradient."""
