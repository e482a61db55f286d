"""SuperGLUE (Wang et al. 2019): tasks that were hard for BERT, fine-tuned like GLUE's.

How each is written as sentences: BoolQ: question, passage. CB, RTE: premise, hypothesis. COPA: premise and its question once
with each choice; the likelier of the two is chosen. MultiRC: paragraph, question and answer; each answer by itself. WiC: the
word and a colon before the first sentence. WSC: the pronoun between asterisks (as in T5, Raffel et al. 2020), then the name
that it may stand for. ReCoRD is not here: ranking entities in a passage needs a program of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Callable

from cram.errors import CramError
from cram.evaluate import glue_metrics as official
from cram.evaluate.glue import Recipe, class_of, sentences, task, text
from cram.evaluate.reading import Example
from cram.evaluate.task import Rows, Split, Task

HUB = "aps/super_glue"
ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa(rows: Rows, number: int) -> Example:
    asked = rows.get(number, "question")
    if asked not in ASKED:
        raise CramError(f"{rows.place}, row {number + 1}: question {asked!r} is neither cause nor effect; fetch the file again")
    premise = f"{text(rows, number, 'premise')} {ASKED[asked]}"
    choices = tuple((premise, text(rows, number, field)) for field in ("choice1", "choice2"))
    return Example(choices, class_of(rows, number, 2))


def multirc(rows: Rows, number: int) -> Example:
    asked = f"{text(rows, number, 'question')} {text(rows, number, 'answer')}"
    return Example(((text(rows, number, "paragraph"), asked),), class_of(rows, number, 2))


def multirc_questions(rows: Rows) -> Callable:
    """The metric of MultiRC, which has to know the answers' questions."""
    questions = []
    for number in range(len(rows.rows)):
        index = rows.get(number, "idx")
        if not isinstance(index, dict) or not {"paragraph", "question"} <= index.keys():
            raise CramError(f"{rows.place}, row {number + 1}: idx {index!r} does not say paragraph and question; fetch the "
                            "file again")
        questions.append((index["paragraph"], index["question"]))
    return official.multirc(questions)


def wic(rows: Rows, number: int) -> Example:
    first = f"{text(rows, number, 'word')}: {text(rows, number, 'sentence1')}"
    return Example(((first, text(rows, number, "sentence2")),), class_of(rows, number, 2))


def wsc(rows: Rows, number: int) -> Example:
    words, at = text(rows, number, "text").split(), rows.get(number, "span2_index")
    if not isinstance(at, int) or not 0 <= at < len(words):
        raise CramError(f"{rows.place}, row {number + 1}: span2_index {at!r} is none of its {len(words)} words; fetch the file "
                        "again")
    words[at] = f"*{words[at]}*"
    return Example(((" ".join(words), text(rows, number, "span1_text")),), class_of(rows, number, 2))


def recipe_of(subset: str, read: Callable[[Rows, int], Example], metrics: Callable, classes: int = 2,
              headline: str = "accuracy") -> Recipe:
    """A task of SuperGLUE by its name on the hub. metrics: rows to the metric."""
    return Recipe(Split(HUB, subset, "train"), {"": Split(HUB, subset, "validation")}, read, classes, metrics, headline)


def _accuracy(rows: Rows) -> Callable:
    return official.accuracy


_ENTAILMENT = partial(sentences, fields=("premise", "hypothesis"))
TASKS: tuple[Task, ...] = (
    task("superglue.boolq", "does the passage answer the question with yes?", "Clark et al. 2019",
         recipe_of("boolq", partial(sentences, fields=("question", "passage"), classes=2), _accuracy), 0.5),
    task("superglue.cb", "entailed, contradicted or open? mean of accuracy and macro F1; 56 examples",
         "de Marneffe et al. 2019",
         recipe_of("cb", partial(_ENTAILMENT, classes=3), lambda rows: official.accuracy_and_macro_f1, 3, "mean"), None),
    task("superglue.copa", "which of two is the cause, or the effect? 100 examples", "Roemmele et al. 2011",
         recipe_of("copa", copa, _accuracy), 0.5),
    task("superglue.multirc", "which answers does the paragraph support? mean of F1a and EM", "Khashabi et al. 2018",
         recipe_of("multirc", multirc, multirc_questions, headline="mean"), None),
    task("superglue.rte", "does the premise entail the hypothesis?", "Dagan et al. 2006 and later",
         recipe_of("rte", partial(_ENTAILMENT, classes=2), _accuracy), 0.5),
    task("superglue.wic", "does the word mean the same in both sentences?", "Pilehvar & Camacho-Collados 2019",
         recipe_of("wic", wic, _accuracy), 0.5),
    task("superglue.wsc", "does the pronoun stand for the name? 104 examples", "Levesque et al. 2012",
         recipe_of("wsc", wsc, _accuracy), 0.5),
)
