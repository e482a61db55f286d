"""Our causal and hybrid models in EleutherAI's lm-evaluation-harness (extra ``eval``), as model "cram".

    import lm_eval
    from cram.after.harness import CramLM
    lm_eval.simple_evaluate(model=CramLM("runs/demo_gpt"), tasks=["lambada_openai", "arc_easy"])

or ``cram harness runs/demo_gpt --tasks arc_easy``. Context and continuation are split, and cut to the model's row, as the
harness's own HFLM does; each text begins with [CLS]. Batches are cut by tokens: the harness's batch size is not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence

import torch

from cram.errors import CramError
from cram.evaluate.heldout import evaluating
from cram.evaluate.scoring import continuation_scores, encode_pair, opening
from cram.evaluate.subject import Subject, open_subject
from cram.ops import Documents

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise CramError(f"lm-evaluation-harness is not there ({missing}); pip install 'cram-lm[eval]'") from missing

NEW_TOKENS = 256  # where a task does not say how many, as in HFLM


@register_model("cram")
class CramLM(LM):
    """run: what ``open_subject`` takes, or a subject. device: cpu, cuda or auto. Raises CramError for a masked model."""

    def __init__(self, run: Subject | str | Path, device: Optional[str] = None, batch_size: Any = None,
                 max_batch_size: Any = None):
        super().__init__()
        self.subject = run if isinstance(run, Subject) else open_subject(str(run), device=device or "auto")
        if self.subject.kind == "masked":
            raise CramError(f"{self.subject.name}: the harness scores causal and hybrid models, and this one is masked; score "
                            f"it with: cram evaluate {self.subject.folder} tasks=blimp")
        if batch_size not in (None, 1, "1", "auto") or max_batch_size is not None:
            print("cram: batches are cut by tokens; the batch size given to the harness is not used")
        self._device = torch.device(self.subject.device)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells request caches apart by."""
        return f"cram-{self.subject.identity.get('tokenizer', self.subject.name)}"

    def get_model_info(self) -> dict:
        """What stands beside the results."""
        return {"model_name": self.subject.name, "model_identity": self.subject.identity}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log p, whether greedy decoding would write it) of each continuation."""
        texts = [request.args for request in requests]
        scores = continuation_scores(self.subject, [encode_pair(self.subject, *text) for text in texts])
        if scores.truncated:
            print(f"cram: {scores.truncated} of {len(texts)} texts are longer than the {self.subject.row} tokens that the "
                  "model was trained on; cut from the left")
        answers = list(zip(scores.log_p.tolist(), scores.greedy.tolist()))
        for text, answer in zip(texts, answers):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each text, all of it: in windows of a row where it is longer."""
        texts = [request.args[0] for request in requests]
        scores = continuation_scores(self.subject, [([], self.subject.encode(text)) for text in texts])
        for text, log_p in zip(texts, scores.log_p.tolist()):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), log_p)
        return scores.log_p.tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, token by token, up to a stop text or [SEP]."""
        texts = []
        for context, options in (request.args for request in requests):
            if options.get("do_sample") or options.get("temperature", 0):
                raise CramError("cram generates the likeliest token in the harness; use do_sample=False and temperature=0")
            until = options.get("until") or []
            texts.append(self._continue(context, [until] if isinstance(until, str) else list(until),
                                        int(options.get("max_gen_toks", NEW_TOKENS))))
            self.cache_hook.add_partial("generate_until", (context, options), texts[-1])
        return texts

    @torch.no_grad()
    def _continue(self, context: str, until: Sequence[str], tokens: int) -> str:
        """Reads the last row of tokens again for each new one (no cache)."""
        subject, special = self.subject, self.subject.special
        ids, new = [*opening(subject), *subject.encode(context)] or [special["cls"]], []
        never = [special[name] for name in ("pad", "unk", "cls", "mask") if special.get(name) not in (None, special["sep"])]
        with evaluating(subject.model):
            while len(new) < tokens:
                seen = (ids + new)[-subject.row:]
                hidden_ND = subject.model(torch.tensor(seen, device=subject.device),
                                          Documents.from_lengths([len(seen)], subject.device))
                logits_V = subject.model.logits(hidden_ND[-1:])[0].float()
                logits_V[never] = -torch.inf
                token = int(logits_V.argmax())
                if token == special["sep"]:
                    break
                new.append(token)
                text = subject.tokenizer.decode(new)
                if any(stop and stop in text for stop in until):
                    break
        text = subject.tokenizer.decode(new)
        return text[:min([text.find(stop) for stop in until if stop and stop in text], default=len(text))]
