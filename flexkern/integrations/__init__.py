"""Callbacks that end items where training frameworks end experiences and epochs (docs/integrations.md).

One module for each framework, which imports it: ``flexkern.integrations.transformers``, ``.lightning`` and
``.avalanche``. This package imports none of them.
"""
