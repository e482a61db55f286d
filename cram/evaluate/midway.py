"""The look at a model in the middle of its day: held-out loss, some minimal pairs, one sample. Cheap, charged, and without
effect on the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from cram.errors import CramError
from cram.evaluate.heldout import score_heldout
from cram.evaluate.minimal_pairs import FOLDER, sample_pairs, score_sample
from cram.evaluate.samples import one_sample
from data_prep.shards import Shards


class Look:
    """What is looked at, the same each time. config: ``cram.schema.Config``; heldout: the validation shards.

    tokens: that a model must read for one look, at most. Raises CramError or DataError when the pairs asked for are not there.
    """

    def __init__(self, config: Any, heldout: Shards, tokenizer: Any):
        self.config, self.heldout, self.tokenizer = config, heldout, tokenizer
        self.pairs: list[dict] = []
        self.tokens = config.train.validation_tokens
        if config.train.validation_pairs:
            mirror = Path(config.evaluate.mirror or config.data.mirror)
            self.pairs = sample_pairs(mirror, config.train.validation_pairs, seed=0)
            if not self.pairs:
                raise CramError(f"train.validation_pairs: no {FOLDER} in {mirror}; set evaluate.mirror to a "
                                "folder that has them, or train.validation_pairs=0")
            masked = config.objective.type == "masked"  # then a sentence is read once for each of its tokens
            lengths = [len(tokenizer.encode(pair[side]).ids) for pair in self.pairs for side in ("good", "bad")]
            self.tokens += sum(length * (length if masked else 1) for length in lengths)

    def __call__(self, model: Any, device: Any, batch_tokens: int) -> tuple[dict, Optional[str]]:
        """(a row of scores, a sample of text or None) of ``model`` on ``device`` (``cram.device.Device``)."""
        config, kind = self.config, device.kind
        scores = score_heldout(model, self.heldout, row=config.train.sequence_length, mask_rate=config.evaluate.mask_rate,
                               max_tokens=config.train.validation_tokens, batch_tokens=batch_tokens, device=kind,
                               hybrid=config.objective.type == "hybrid", autocast=device.autocast())
        if self.pairs:
            found = score_sample(model, self.tokenizer, self.pairs, self.heldout.special, batch_tokens=batch_tokens,
                                 device=kind)
            scores["minimal_pairs"] = found["accuracy"]
        return scores, one_sample(model, self.tokenizer, config.evaluate, device=kind)
