"""A learner from a folder of images: ``flexkern fit``, and its answers: ``flexkern predict``."""
