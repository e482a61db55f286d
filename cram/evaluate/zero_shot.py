"""The benchmarks that need no training: minimal pairs, multiple choice, the last word."""

from __future__ import annotations

from functools import partial

from cram.evaluate import choices
from cram.evaluate.minimal_pairs import BLIMP, score_blimp
from cram.evaluate.task import Split, Task

ALL, CAUSAL = ("masked", "causal", "hybrid"), ("causal", "hybrid")


def _choice(name: str, what: str, source: str, headline: str, chance: float, split: Split, read: choices.Reader) -> Task:
    return Task(name, what, source, ALL, headline, chance, (split,),
                partial(choices.score_choices, read=read, headline=headline))


TASKS: tuple[Task, ...] = (
    Task("blimp", "67 paradigms of grammatical minimal pairs; masked: pseudo-log-likelihood by whole words",
         "Warstadt et al. 2020; Kauf & Ivanova 2023", ALL, "accuracy", 0.5, tuple(BLIMP.values()), score_blimp),
    Task("blimp.original", "BLiMP by the pseudo-log-likelihood that hides one token at a time; hybrid: in the masked half",
         "Warstadt et al. 2020; Salazar et al. 2020", ("masked", "hybrid"), "accuracy", 0.5, tuple(BLIMP.values()),
         partial(score_blimp, variant="original")),
    _choice("hellaswag", "which ending fits the scene", "Zellers et al. 2019", "acc_norm", 0.25,
            Split("Rowan/hellaswag", None, "validation"), choices.hellaswag),
    _choice("arc_easy", "grade-school science, the easier questions", "Clark et al. 2018", "acc", 0.25,
            Split("allenai/ai2_arc", "ARC-Easy", "test"), choices.arc),
    _choice("arc_challenge", "grade-school science, the harder questions", "Clark et al. 2018", "acc_norm", 0.25,
            Split("allenai/ai2_arc", "ARC-Challenge", "test"), choices.arc),
    _choice("piqa", "how to do everyday things", "Bisk et al. 2020", "acc_norm", 0.5,
            Split("baber/piqa", None, "validation"), choices.piqa),
    _choice("copa", "which alternative is the cause or the effect", "Roemmele et al. 2011; Wang et al. 2019", "acc", 0.5,
            Split("super_glue", "copa", "validation"), choices.copa),
    _choice("winogrande", "whom a sentence means, by partial evaluation", "Sakaguchi et al. 2020", "acc", 0.5,
            Split("allenai/winogrande", "winogrande_xl", "validation"), choices.winogrande),
    Task("lambada", "the last word of a passage, every token the likeliest one", "Paperno et al. 2016; Radford et al. 2019",
         CAUSAL, "acc", 0.0, (Split("EleutherAI/lambada_openai", None, "test"),), choices.score_last_words),
)
