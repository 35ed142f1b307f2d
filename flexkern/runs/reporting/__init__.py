"""What ``flexkern report`` makes of results."""
