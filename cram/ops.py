"""The one door to the ``kernels`` package (see ``cram/__init__.py`` for its name at run time)."""

from cram._kernels.attention import BACKENDS, QKNorm, Rope, Sight, attention, sight, why_not
from cram._kernels.attention_twin import normalise_and_rotate
from cram._kernels.documents import Documents
from cram._kernels.loss import CHUNK_BYTES, linear_cross_entropy

__all__ = ["BACKENDS", "CHUNK_BYTES", "Documents", "QKNorm", "Rope", "Sight", "attention", "linear_cross_entropy",
           "normalise_and_rotate", "sight", "why_not"]
