"""The one door to the ``kernels`` package (see ``cram/__init__.py`` for its name at run time)."""

from cram._kernels.attention import Documents, attention, attention_mask

__all__ = ["Documents", "attention", "attention_mask"]
