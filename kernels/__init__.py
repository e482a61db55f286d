"""Tensors in, tensors out: the operations cram writes itself.

This package knows nothing of models, configurations or files. Import it through
``cram.ops`` only: its bare name belongs to another project on PyPI.
"""
