"""Exercises of lessons 1 to 4: tokenizer, filters, packing, kernel."""

from __future__ import annotations

import json
import math

from cram.insight.lesson.judge import Asked, Verdict, compared, number, read, yes_no
from cram.insight.lesson.kinds import EDITED_AWAY, KEPT, fates_by_kind
from cram.insight.lesson.tiles import tile_pairs

MOST_LOST, LEAST_DROPPED = 0.05, 0.9


def guessing(asked: Asked) -> Verdict:
    """1.1: bits per byte of a model for which all tokens are equally likely."""
    data = read(asked.made("tiny") / "data" / "manifest.json")
    held_out = data["splits"]["validation"]
    words = held_out["tokens"] - 2 * held_out["documents"]      # [CLS] and [SEP] stand for no byte
    return number(asked, math.log2(data["vocab_size"]) * words / held_out["bytes"],
                  "every token costs log2(vocabulary) bits, and stands for so many bytes of held-out text", 0.03)


def fewer_tokens(asked: Asked) -> Verdict:
    """1.2: what a larger vocabulary saves."""
    small, large = (read(asked.made(name) / "data" / "manifest.json")["splits"]["train"]["tokens"]
                    for name in ("tiny", "larger"))
    return number(asked, 100 * (1 - large / small), "100 x (1 - tokens with the larger vocabulary / tokens with the smaller), "
                  "both in the last line but one of cram data", 0.03)


def lossless(asked: Asked) -> Verdict:
    """1.3: whether WordPiece gives the text back."""
    from data_prep.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(asked.made("pieces") / "tokenizer")
    texts = [json.loads(line)["text"] for line in
             (asked.made("tiny") / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    same = all(tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text for text in texts)
    return yes_no(asked, same, f"{len(texts)} held-out documents were encoded and decoded with runs/lessons/pieces; "
                  "'documents that come back unchanged' in cram tokenizer evaluate is the same test")


def junk_kept(asked: Asked) -> Verdict:
    """2.1: the share of junk in what was kept."""
    kept = {kind: sum(fates[name] for name in KEPT) for kind, fates in fates_by_kind(asked.made("web")).items()}
    return number(asked, 100 * (1 - kept["document"] / sum(kept.values())), "100 x (pages kept that are no documents / pages "
                  "kept), from the column 'kept' of cram lesson kinds runs/lessons/web", 0.02)


def edited_away(asked: Asked) -> Verdict:
    """2.2: pages of which C4's rules on lines leave nothing."""
    gone = sum(fates[EDITED_AWAY] for fates in fates_by_kind(asked.made("web_c4")).values())
    return number(asked, gone, "'edits' in cram lesson kinds runs/lessons/web_c4: pages without one line that ends as a "
                  "sentence does", 0.001)


def own_filters(asked: Asked) -> Verdict:
    """2.3: settings that drop the junk and keep the documents."""
    found = fates_by_kind(asked.folder())
    kept = {kind: sum(fates[name] for name in KEPT) / fates.total() for kind, fates in found.items()}
    if kept["document"] < 1 - MOST_LOST:
        return Verdict(False, f"{1 - kept['document']:.0%} of the good documents are gone; at most {MOST_LOST:.0%} may be: "
                       "a rule is too strict, cram lesson kinds says which")
    left = [f"{kind} ({share:.0%} kept)" for kind, share in kept.items() if kind != "document" and share > 1 - LEAST_DROPPED]
    return compared(not left, "each kind of junk is gone, the documents stay",
                    f"still there: {', '.join(left)}; what do such pages have too much or too little of?")


def beginnings(asked: Asked) -> Verdict:
    """3.1: documents that begin in 100 rows."""
    folder = asked.made("packing")
    train, row = read(folder / "data" / "manifest.json")["splits"]["train"], 128
    return number(asked, 100 * train["documents"] * row / train["tokens"],
                  "documents / (tokens / 128) x 100, from the line that begins with 'data:'", 0.03)


def padding(asked: Asked) -> Verdict:
    """3.2: what best-fit packing pads."""
    share = read(asked.made("fit") / "data" / "manifest.json")["padding_share"]
    return number(asked, 100 * share, "padding_share in runs/lessons/fit/data/manifest.json, in percent", 0.05)


def needed_pairs(asked: Asked) -> Verdict:
    """3.3: causal pairs within documents, of those in the row: four documents of 32 tokens in a row of 128."""
    def causal(tokens: int) -> int:
        return tokens * (tokens + 1) // 2
    return number(asked, 100 * 4 * causal(32) / causal(128),
                  "n tokens that look at themselves and back are n (n + 1) / 2 pairs: of four documents, over that of the row")


def score_matrix(asked: Asked) -> Verdict:
    """4.1: GiB of the scores of one layer: 8,192 tokens, 12 heads, 2 bytes."""
    return number(asked, 8192 ** 2 * 12 * 2 / 2 ** 30, "tokens x tokens x heads x bytes, over 2^30")


def rescaling(asked: Asked) -> Verdict:
    """4.2: the factor of the online softmax when the maximum rises from 3 to 5."""
    return number(asked, math.exp(3 - 5), "what was summed relative to the old maximum is multiplied by exp(old - new)")


def tiles_to_visit(asked: Asked) -> Verdict:
    """4.3: pairs of tiles of 16 tokens that documents of 40, 16 and 72 tokens need."""
    visited, _ = tile_pairs([40, 16, 72], 16)
    return number(asked, visited, "a pair of tiles is needed when one query of the first sees one key of the second; draw the "
                  "8 x 8 tiles", 0.001)


CHECKS = {("1", "1"): guessing, ("1", "2"): fewer_tokens, ("1", "3"): lossless,
          ("2", "1"): junk_kept, ("2", "2"): edited_away, ("2", "3"): own_filters,
          ("3", "1"): beginnings, ("3", "2"): padding, ("3", "3"): needed_pairs,
          ("4", "1"): score_matrix, ("4", "2"): rescaling, ("4", "3"): tiles_to_visit}
