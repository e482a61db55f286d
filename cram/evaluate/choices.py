"""Multiple choice and the last word, asked as EleutherAI's lm-evaluation-harness 0.4 asks: same prompts, same normalisations.

The model takes the choice whose text it finds likeliest after the question: ``acc`` by the sum of log p, ``acc_norm`` by that
sum over the characters of the choice (of its text, the space before it not counted); of equals the first. A causal or
hybrid model gives log p(choice | [CLS] question), a masked one the pseudo-log-likelihood of the choice's tokens by whole words
(scoring.py), which the harness does not offer: such figures compare among masked models alone.

gold_bits_per_byte: bits of the right choice over its UTF-8 bytes without the space before it, the mean over questions (OLMo,
``downstream.py``): it moves long before accuracy does.

Columns are the hub's; what other copies of a dataset call them is accepted where a reader below says so.
"""

from __future__ import annotations

import math
import re
from typing import Any, Callable, NamedTuple

import numpy as np

from cram.errors import CramError
from cram.evaluate.minimal_pairs import wilson
from cram.evaluate.scoring import Scores, log_likelihoods
from cram.evaluate.subject import Subject
from cram.evaluate.task import Rows, Split


class Question(NamedTuple):
    """requests: (context, continuation), one a choice. choices: what is measured in characters, nothing where the choices
    are no continuations. gold: number of the right one."""

    requests: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int


Reader = Callable[[Rows], list[Question]]


def _text(rows: Rows, number: int, *fields: str) -> str:
    """A field that must be text. Raises CramError when it is not there, or something else."""
    value = rows.get(number, *fields)
    if not isinstance(value, str):
        raise CramError(f"{rows.place}, row {number + 1}: {fields[0]} is {value!r}, not text; fetch the file again")
    return value


def _ask(rows: Rows, number: int, context: str, choices: Any, gold: Any) -> Question:
    """A question whose choices follow one context. Raises CramError when the answer is not among them."""
    if not isinstance(choices, (list, tuple)) or len(choices) < 2 or not all(isinstance(text, str) for text in choices):
        raise CramError(f"{rows.place}, row {number + 1}: needs two choices or more, not {choices!r}; fetch the file again")
    requests = tuple((context, f" {choice}") for choice in choices)
    return Question(requests, tuple(choices), _gold(rows, number, gold, len(choices)))


def _gold(rows: Rows, number: int, gold: Any, choices: int) -> int:
    if str(gold) not in map(str, range(choices)):
        raise CramError(f"{rows.place}, row {number + 1}: the answer {gold!r} is none of 0 to {choices - 1}; take a split with "
                        "answers, or fetch the file again")
    return int(gold)


def clean_hellaswag(text: str) -> str:
    """Without the brackets that WikiHow's pages left (lm_eval/tasks/hellaswag/utils.py)."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(rows: Rows) -> list[Question]:
    """Zellers et al. 2019. Copies with the prompt in ``ctx`` and without ``ctx_a`` are taken for prepared: as they are."""
    questions = []
    for number, row in enumerate(rows.rows):
        question = _ask(rows, number, _text(rows, number, "ctx"), rows.get(number, "endings"), rows.get(number, "label"))
        if "ctx_a" in row:
            beginning = _text(rows, number, "ctx_a") + " " + _text(rows, number, "ctx_b").capitalize()
            context = clean_hellaswag(f"{_text(rows, number, 'activity_label')}: {beginning}")
            question = _ask(rows, number, context, list(map(clean_hellaswag, question.choices)), question.gold)
        questions.append(question)
    return questions


def arc(rows: Rows) -> list[Question]:
    """Clark et al. 2018. Copies may have ``query`` ("Question: ..."), a list of ``choices`` and the number ``gold``."""
    questions = []
    for number, row in enumerate(rows.rows):
        choices = rows.get(number, "choices")
        if "query" in row:
            questions.append(_ask(rows, number, f"{_text(rows, number, 'query')}\nAnswer:", choices, rows.get(number, "gold")))
            continue
        question, answer = _text(rows, number, "question"), rows.get(number, "answerKey")
        if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
            raise CramError(f"{rows.place}, row {number + 1}: choices must have text and label; fetch the file again")
        gold = list(choices["label"]).index(answer) if answer in choices["label"] else answer
        questions.append(_ask(rows, number, f"Question: {question}\nAnswer:", list(choices["text"]), gold))
    return questions


def piqa(rows: Rows) -> list[Question]:
    """Bisk et al. 2020."""
    return [_ask(rows, number, f"Question: {_text(rows, number, 'goal')}\nAnswer:",
                 [_text(rows, number, "sol1"), _text(rows, number, "sol2")], rows.get(number, "label"))
            for number in range(len(rows.rows))]


def copa(rows: Rows) -> list[Question]:
    """Roemmele et al. 2011: "premise because" or "premise therefore", then the alternative.

    The harness begins an alternative with a space and then puts one before it: so there are two here too. Copies of
    (premise, hypothesis, label "entailment") do not tell cause from effect: the alternative follows the whole premise,
    which is another test than the harness's.
    """
    if rows.rows and "hypothesis" in rows.rows[0]:
        return _copa_pairs(rows)
    questions, connectors = [], {"cause": "because", "effect": "therefore"}
    for number in range(len(rows.rows)):
        premise, asked = _text(rows, number, "premise"), rows.get(number, "question")
        if asked not in connectors:
            raise CramError(f"{rows.place}, row {number + 1}: question is {asked!r}, not cause or effect; fetch the file again")
        choices = [_text(rows, number, name) for name in ("choice1", "choice2")]
        questions.append(_ask(rows, number, f"{premise.strip()[:-1]} {connectors[asked]}",
                              [f" {choice[:1].lower()}{choice[1:]}" for choice in choices], rows.get(number, "label")))
    return questions


def _copa_pairs(rows: Rows) -> list[Question]:
    by_premise: dict[str, list[int]] = {}
    for number in range(len(rows.rows)):
        by_premise.setdefault(_text(rows, number, "premise"), []).append(number)
    questions = []
    for premise, numbers in by_premise.items():
        right = [place for place, number in enumerate(numbers) if rows.get(number, "label") == "entailment"]
        if len(right) != 1:
            raise CramError(f"{rows.place}, row {numbers[0] + 1}: {len(right)} of the alternatives of {premise!r} are right, "
                            "not one; fetch the file again")
        questions.append(_ask(rows, numbers[0], premise, [_text(rows, number, "hypothesis") for number in numbers], right[0]))
    return questions


def winogrande(rows: Rows) -> list[Question]:
    """Sakaguchi et al. 2020, by partial evaluation (Trinh & Le 2018): the rest of the sentence after either option."""
    questions = []
    for number in range(len(rows.rows)):
        sentence, answer = _text(rows, number, "sentence"), rows.get(number, "answer")
        before, blank, rest = sentence.partition("_")
        if not blank or str(answer) not in ("1", "2"):
            raise CramError(f"{rows.place}, row {number + 1}: no blank in {sentence!r}, or the answer {answer!r} is not 1 or "
                            "2; take a split with answers, or fetch the file again")
        options = [_text(rows, number, name) for name in ("option1", "option2")]
        requests = tuple((before + option, f" {rest.strip()}") for option in options)
        questions.append(Question(requests, (), int(answer) - 1))
    return questions


def judge(questions: list[Question], scores: Scores, headline: str) -> dict:
    """The result of a task from the scores of all requests, question after question."""
    log_p = np.split(scores.log_p, np.cumsum([len(question.requests) for question in questions])[:-1])
    gold = [question.gold for question in questions]
    hits = {"acc": [int(np.argmax(log_p_C)) == right for log_p_C, right in zip(log_p, gold)]}
    if all(question.choices for question in questions):
        hits["acc_norm"] = [int(np.argmax(log_p_C / np.array([max(1, len(text)) for text in question.choices]))) == right
                            for log_p_C, question, right in zip(log_p, questions, gold)]
    bits = [_bits_per_byte(log_p_C[question.gold], question.requests[question.gold][1])
            for log_p_C, question in zip(log_p, questions)]
    details: dict[str, Any] = {name: _share(found) for name, found in hits.items()}
    details |= {"gold_bits_per_byte": _mean(bits), "truncated": scores.truncated}
    return {"metric": headline, "score": details[headline]["value"], "low": details[headline]["low"],
            "high": details[headline]["high"], "examples": len(questions), "details": details}


def score_choices(subject: Subject, rows: dict[Split, Rows], config: Any, say: Callable[[str], None], *, read: Reader,
                  headline: str) -> dict:
    """A multiple-choice task (``Task.score``). headline: "acc" or "acc_norm", the other one is among the details."""
    (found,) = rows.values()
    questions = read(found)
    if not questions:
        raise CramError(f"{found.place}: holds no question; fetch the file again")
    scores = log_likelihoods(subject, [request for question in questions for request in question.requests], say=say)
    result = judge(questions, scores, headline)
    result["details"]["scored_by"] = "within_word_l2r" if subject.kind == "masked" else "log_p"
    if read is copa and "hypothesis" in found.rows[0]:
        result["details"]["note"] = "pairs without because and therefore: not comparable with lm-evaluation-harness"
        say(f"copa: {found.place} has {result['details']['note']}")
    return result


def last_words(rows: Rows) -> list[tuple[str, str]]:
    """LAMBADA (Paperno et al. 2016): (all but the last word, a space and the last word)."""
    requests = []
    for number in range(len(rows.rows)):
        *words, last = _text(rows, number, "text").split(" ")
        if not words or not last:
            raise CramError(f"{rows.place}, row {number + 1}: no last word after a space; fetch the file again")
        requests.append((" ".join(words), f" {last}"))
    return requests


def score_last_words(subject: Subject, rows: dict[Split, Rows], config: Any, say: Callable[[str], None]) -> dict:
    """LAMBADA (``Task.score``): how often every token of the last word is the likeliest one; its perplexity a word."""
    (found,) = rows.values()
    requests = last_words(found)
    if not requests:
        raise CramError(f"{found.place}: holds no text; fetch the file again")
    scores = log_likelihoods(subject, requests, say=say)
    acc, nats = _share(scores.greedy), _mean(-scores.log_p)
    bits = [_bits_per_byte(log_p, word) for log_p, (_, word) in zip(scores.log_p, requests)]
    perplexity = {name: math.exp(nats[name]) for name in ("value", "low", "high")}
    return {"metric": "acc", "score": acc["value"], "low": acc["low"], "high": acc["high"], "examples": len(requests),
            "details": {"acc": acc, "perplexity": perplexity, "gold_bits_per_byte": _mean(bits), "truncated": scores.truncated}}


def _bits_per_byte(log_p: float, text: str) -> float:
    return -log_p / math.log(2) / max(1, len(text.strip().encode()))


def _share(hits: Any) -> dict:
    """A proportion, its 95% Wilson interval and its standard error as the harness gives it (of a sample: n - 1)."""
    n, right = len(hits), int(np.sum(hits))
    low, high = wilson(right, n)
    return {"value": right / n, "low": low, "high": high, "stderr": math.sqrt(right / n * (1 - right / n) / max(1, n - 1))}


def _mean(values: Any) -> dict:
    """A mean with its standard error and 95% interval."""
    values = np.asarray(values, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return {"value": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error, "stderr": error}
