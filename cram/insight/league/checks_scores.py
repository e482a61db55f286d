"""What a score must agree about with the text it was measured on, with the baselines, and with the curve that led there."""

from __future__ import annotations

import math
from typing import Iterator

from cram.insight.league.card import Card

PLAUSIBLE = 0.1    # of the loss that the curve leads to, beside what it still fell in its last part
BELOW_TRAINING = 0.15  # held-out loss below training loss by more than this share: the score is not this run's


def check_text(card: Card) -> Iterator[str]:
    """The counts of the text scored fit each other and the packed data."""
    held_out, data, config = card.scores["held_out"], card.body["data"]["splits"]["validation"], card.config
    if card.scores["objective"] != config.objective.type:
        yield f"scored as a {card.scores['objective']} model, trained as a {config.objective.type} one"
    documents, tokens, predicted = held_out["documents"], held_out["tokens"], held_out["predicted"]
    if documents > data["documents"] or tokens > data["tokens"] or held_out.get("bytes", 0) > data["bytes"]:
        yield "more text was scored than is held out"
    if documents == data["documents"] and (tokens != data["tokens"] or held_out.get("bytes", data["bytes"]) != data["bytes"]):
        yield "all documents were scored, but not all their tokens and bytes"
    if tokens > config.evaluate.tokens and documents > 1:
        yield f"{tokens:,} tokens were scored, where evaluate.tokens allows {config.evaluate.tokens:,}"
    if config.data.packing != "stream":
        return
    if config.objective.type == "masked":
        whole = config.evaluate.mask_rate * (tokens - 2 * documents)
        if not 0.9 * whole - 1 <= predicted <= whole + 1:
            yield f"{predicted:,} tokens predicted, where {config.evaluate.mask_rate:g} of the text are {whole:,.0f}"
    elif predicted != tokens - documents:
        yield f"{predicted:,} tokens predicted, where the text has {tokens - documents:,}"


def check_score(card: Card) -> Iterator[str]:
    """Accuracy is a whole number of hits; the baselines are what the counts say; loss and bits per byte are one score."""
    held_out, baselines = card.scores["held_out"], card.scores["baselines"]
    loss, accuracy, predicted = held_out["loss"], held_out["accuracy"], held_out["predicted"]
    uniform = math.log(card.body["data"]["vocab_size"])
    hits = accuracy * predicted
    if not 0 <= accuracy <= 1 or abs(hits - round(hits)) > 0.01 + 1e-6 * predicted:
        yield f"accuracy {accuracy} is no whole number of {predicted:,} tokens"
    if not (1 - accuracy) * math.log(2) <= loss < 3 * uniform:  # a token guessed wrong had at most half of the probability
        yield f"a loss of {loss:.4f} nats cannot go with {accuracy:.1%} right"
    if not math.isclose(baselines["uniform"]["loss"], uniform, rel_tol=1e-6):
        yield f"the uniform baseline is {uniform:.4f} nats for this vocabulary, not {baselines['uniform']['loss']:.4f}"
    if not 0 < baselines["unigram"]["loss"] <= 1.2 * uniform:
        yield f"a unigram baseline of {baselines['unigram']['loss']:.4f} nats cannot be"
    if not math.isclose(card.scores["gain_over_unigram"], 1 - loss / baselines["unigram"]["loss"], abs_tol=1e-9):
        yield "the gain over the unigram baseline is not that of loss and baseline"
    bits = held_out.get("bits_per_byte")
    if (bits is None) != (card.config.objective.type == "masked" or not card.body["data"]["lossless"]):
        yield "bits per byte are told where there are none, or the other way round"
    if bits is None or card.config.data.packing != "stream":
        return
    content, text = predicted - held_out["documents"], held_out["bytes"]  # without the [SEP] of each document
    for name, row in [("score", held_out), *((name, baselines[name]) for name in ("uniform", "unigram"))]:
        most = row["loss"] * predicted / math.log(2) / text
        least = most - 3 * uniform * held_out["documents"] / math.log(2) / text
        if not least <= row["bits_per_byte"] <= most * (1 + 1e-6):
            yield f"{name}: {row['bits_per_byte']:.4f} bits per byte are not {row['loss']:.4f} nats per token on this text"
    if not math.isclose(baselines["uniform"]["bits_per_byte"], content * math.log2(card.body["data"]["vocab_size"]) / text,
                        rel_tol=1e-6):
        yield "the uniform baseline in bits per byte is not that of the counts told"


def check_curve(card: Card) -> Iterator[str]:
    """The score lies where the curve leads to."""
    loss, looks, train = card.scores["held_out"]["loss"], card.rows("validation"), card.rows("train")
    losses = [row["loss"] for row in looks] + [row["loss"] for row in train if row["loss"] is not None]
    if not all(math.isfinite(value) and value > 0 for value in losses):
        yield "a loss in its metrics that is no loss"
        return
    if len(looks) >= 2 and card.ledger.rows[-1]["steps"]:
        last, before = looks[-1], looks[-2]
        fell = before["loss"] - last["loss"]
        slope = fell / max(last["progress"] - before["progress"], 1e-9)
        leads_to = last["loss"] - max(slope, 0.0) * (1 - last["progress"])
        if abs(loss - leads_to) > PLAUSIBLE * leads_to + abs(last["loss"] - leads_to) + abs(fell):
            yield f"held-out loss {loss:.4f}, but the validations on the way lead to {leads_to:.4f}"
    config = card.config
    if config.objective.type == "causal" and config.distill.teacher is None and train:
        tail = [row["loss"] for row in train if row["progress"] > 0.9 and row["loss"] is not None]
        if tail and loss < (1 - BELOW_TRAINING) * min(tail):
            yield f"held-out loss {loss:.4f}, far below every training loss at the end (least {min(tail):.4f})"
