"""What is predicted, and what a prediction costs.

masked: hidden tokens, at their own place, from both sides (masking.py). causal: the next token. hybrid: some
micro-batches are causal and the others masked, and there too every token is predicted at the position before it, so that
one model learns both (GPT-BERT, Charpentier & Samuel 2024, section 2).

Losses are sums over predicted tokens; the loop divides by the number predicted in the whole optimizer step, so the split
into micro-batches does not change the gradient.

Axes: N tokens, K predictions, D model width, V vocabulary.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cram.errors import CramError
from cram.masking import IGNORE, hidden_count
from cram.ops import Documents, linear_cross_entropy


def step_kinds(objective, step: int, micro_batches: int) -> list[bool]:
    """For each micro-batch of a step, over all processes: is it causal?

    objective: ``cram.schema.Objective``. hybrid: micro-batch g = step * micro_batches + i of the run is causal when
    floor((g + 1) share) > floor(g share), so that the causal ones are as evenly spread as can be.
    """
    if objective.type != "hybrid":
        return [objective.type == "causal"] * micro_batches
    share = Fraction(objective.causal_share).limit_denominator(10**6)  # 0.1 is meant, not the nearest binary fraction
    causal_before = [g * share.numerator // share.denominator
                     for g in range(step * micro_batches, (step + 1) * micro_batches + 1)]
    return [after > before for before, after in zip(causal_before, causal_before[1:])]


def predicted_fraction(causal: bool, mask_rate: float, length: int) -> float:
    """Share of the tokens of a micro-batch at which the last layer is computed, in rows of ``length``."""
    return 1.0 if causal else hidden_count(mask_rate, length) / length


def causal_labels(next_N: np.ndarray, cls: int, pad: int | None = None) -> np.ndarray:
    """Labels int64 [N] from each token's successor: one that opens a new document, or fills up a row, is not predicted."""
    never_N = next_N == cls
    if pad is not None:
        never_N = never_N | (next_N == pad)
    return np.where(never_N, IGNORE, next_N.astype(np.int64))


class Loss(nn.Module):
    """A model with its loss: what is compiled and distributed as one.

    model: ``Transformer``; objective: ``cram.schema.Objective``, of which z_loss is read. chunked: never hold all logits.
    teacher: a model with the same vocabulary to learn from as well, with ``cram.schema.Distill``; it is put into
    evaluation mode, gets no gradient, and is no part of ``parameters()``, ``state_dict()`` or ``to()``.
    Raises CramError when the vocabularies differ, or for a teacher with the chunked loss.
    """

    def __init__(self, model: nn.Module, objective, chunked: bool, teacher: Optional[nn.Module] = None, distill=None):
        super().__init__()
        self.model, self.z_loss, self.chunked, self.distill = model, objective.z_loss, chunked, distill
        self._teacher = () if teacher is None else (teacher.eval(),)  # in a tuple, where torch does not look for modules
        if teacher is not None and chunked:
            raise CramError("distill.teacher needs all logits at once: use train.loss=plain")
        if teacher is not None and teacher.vocab_size != model.vocab_size:
            raise CramError(f"distill.teacher has a vocabulary of {teacher.vocab_size} tokens, the model {model.vocab_size}: "
                            "train both on the same tokenizer")

    def forward(self, ids_N: Tensor, documents: Documents, positions_K: Optional[Tensor], labels_K: Tensor,
                causal: Optional[bool] = None) -> tuple[Tensor, Tensor]:
        """What is minimised, and the plain cross-entropy (detached): two sums in nats over the labels that are not IGNORE,
        float32 [].

        positions_K: int64, where the labels sit; None: at every token. causal: None as the model was built.
        """
        x_KD = select(self.model(ids_N, documents, causal), positions_K)
        if not self._teacher:
            return cross_entropy(self.model, x_KD, labels_K, self.z_loss, self.chunked)
        teacher, = self._teacher
        with torch.no_grad():
            teacher_KV = teacher.logits(select(teacher(ids_N, documents, causal), positions_K))
        logits_KV, distill = self.model.logits(x_KD), self.distill
        nats = F.cross_entropy(logits_KV, labels_K, ignore_index=IGNORE, reduction="sum")
        taught = distillation(logits_KV, teacher_KV, labels_K, distill.temperature)
        total = (1 - distill.weight) * nats + distill.weight * taught
        if self.z_loss:
            total = total + self.z_loss * squared_log_z(logits_KV, labels_K)
        return total, nats.detach()


def select(x_ND: Tensor, positions_K: Optional[Tensor]) -> Tensor:
    """The hidden states at the positions, or all."""
    return x_ND if positions_K is None else x_ND.index_select(0, positions_K)


def cross_entropy(model, x_KD: Tensor, labels_K: Tensor, z_loss: float, chunked: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus z_loss times log(Z)^2, and without it (detached), in nats: sums over labels that are not IGNORE."""
    if not chunked:
        logits_KV = model.logits(x_KD)
        nats = F.cross_entropy(logits_KV, labels_K, ignore_index=IGNORE, reduction="sum")
        return nats + z_loss * squared_log_z(logits_KV, labels_K) if z_loss else nats, nats.detach()
    cap = {"ignore_index": IGNORE, "softcap": model.config.logit_softcap}
    total = linear_cross_entropy(x_KD, model.head.weight, labels_K, z_loss=z_loss, **cap)
    if not z_loss:
        return total, total.detach()
    with torch.no_grad():  # the operation gives only the sum of both: the logits are made once more, without gradients
        return total, linear_cross_entropy(x_KD, model.head.weight, labels_K, **cap)


def squared_log_z(logits_KV: Tensor, labels_K: Tensor) -> Tensor:
    """Sum of log(Z)^2 over the labels that are not IGNORE (PaLM, Chowdhery et al. 2022, section 5)."""
    return (torch.logsumexp(logits_KV, dim=-1).square() * (labels_K != IGNORE)).sum()


def distillation(logits_KV: Tensor, teacher_KV: Tensor, labels_K: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T (Hinton et al. 2015, section 2), summed over labels that are not IGNORE."""
    student_KV = F.log_softmax(logits_KV / temperature, dim=-1)
    expected_KV = F.log_softmax(teacher_KV / temperature, dim=-1)
    nats_K = F.kl_div(student_KV, expected_KV, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (nats_K * (labels_K != IGNORE)).sum()
