"""The experiments of the metaplasticity paper (arXiv 2407.07133), one module per figure."""
