"""Tensors in, tensors out: the operations cram writes itself.

This package knows nothing of models, configurations or data; the one file it reads is its
own table of launches. Models import it through ``cram.ops``: its bare name belongs to
another project on PyPI.
"""
