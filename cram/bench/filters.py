"""What cleaning the text is worth: the same model and budget on raw, on filtered, and on filtered and deduplicated text.

The text is web-like (web_text.py), made from clean documents of which some are held back: every arm is scored on these,
in bits per byte, which compares models with different vocabularies. Each arm trains its own tokenizer on its own text,
as a user would. Every arm takes the same number of steps of the same size, so it sees the same number of tokens; less
text is then seen more often (column epochs). Seeds change initialisation and order, not the text. For each seed the
gain of an arm is its distance from the raw arm with the same seed, and the verdict is the mean of these differences with
Student's 95% interval.

Everything runs through the stages of ``cram run``: with ``--runs FOLDER`` finished runs are found again, not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from cram.bench.corpora import describe, distinct, megabytes, take
from cram.bench.measure import attempt
from cram.bench.paired import show_gain
from cram.bench.runs import PLAIN, finish, workplace
from cram.bench.web_text import Recipe, make_web
from cram.config import load
from cram.errors import CramError
from data_prep import edits
from data_prep.files import replace_durably

RAW = "raw"
ARMS: dict[str, tuple[str, ...]] = {
    RAW: ("filters/none", "data.exact_dedup=false", "data.near_dedup.mode=off"),
    "filtered": ("filters/fineweb", "data.exact_dedup=false", "data.near_dedup.mode=off"),
    "filtered + deduplicated": ("filters/fineweb", "data.exact_dedup=true", "data.near_dedup.mode=drop")}
SHARED = ("demo_gpt", "data.source=files", *PLAIN, "tokenizer.vocab_size=4096",
          "data.validation_max_bytes=1000000000", "evaluate.tokens=1000000000")      # all of the held-out text, in every arm
QUICK = ("tokenizer.vocab_size=512", "model.layers=1", "model.width=32", "model.heads=2", "train.batch_tokens=512",
         "train.validation_tokens=512")
VIEW = {"title": "What filters and deduplication are worth", "rounds": "{repeats} seed(s), each on every text.",
        "panel": "The runs", "x": "seed", "line": "arm", "kind": "bars", "baseline": RAW,
        "y": [["bits_per_byte", "held-out bits per byte"]],
        "columns": [["text", "arm", ""], ["seed", "seed", ""], ["bits per byte", "bits_per_byte", ".4f"],
                    ["less than raw", "gain", "+.4f"], ["documents", "documents", ","], ["MB", "megabytes", ".2f"],
                    ["tokens", "tokens", ","], ["tokens seen", "tokens_seen", ","], ["epochs", "epochs", ".2f"]]}
NOTES = ["Every arm: the same steps of the same size, its own tokenizer, the same clean held-out text. Lower is better.",
         "Near-duplicates among the clean documents are taken out first, so that no arm trains on what it is scored on.",
         "less than raw: paired by seed; positive is a gain.",
         "Arms: " + "; ".join(f"{arm}: {' '.join(settings)}" for arm, settings in ARMS.items()) + "."]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured. megabytes: clean text that the web-like text is made from; held_out: clean text to score on."""

    budget: str = "400 steps"
    megabytes: float = 6.0
    held_out: float = 0.5
    recipe: Recipe = Recipe()
    overrides: tuple[str, ...] = ()

    def told(self) -> str:
        """The parameters in one line."""
        return (f"Budget {self.budget}, web-like text from {self.megabytes:g} MB of clean text, {self.held_out:g} MB held out; "
                f"settings: {' '.join((*SHARED, *self.overrides))}. Recipe, in shares of the number of clean documents: "
                f"{describe(self.recipe)}.")


def measure(texts: Sequence[str], plan: Plan, seeds: int, device: str, folder: Optional[Path],
            say: Callable[[str], None]) -> Iterator[list[dict]]:
    """A row for each run, seed after seed, so that an early end leaves whole rounds.

    texts: clean, in a random order. folder: where runs are kept; None: nowhere.
    """
    with workplace(folder) as work:
        held_out, web, kinds = write_corpora(texts, plan, work / "corpus")
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        say(f"filters: web-like text of {sum(kinds.values()):,} pages: {counted}")
        for seed in range(seeds):
            rows, raw = [], None
            for arm, settings in ARMS.items():
                found, error = attempt(_run, arm, seed, settings, plan, (device, work, held_out, web))
                raw = found if arm == RAW else raw
                row = {"arm": arm, "seed": seed, "pages": kinds} | _compared(found, error, raw)
                say(f"filters: {arm}, seed {seed}: " + (row.get("error") or f"{row['bits_per_byte']:.4f} bits per byte"))
                rows.append(row)
            yield rows


def _compared(found: Optional[dict], error: Optional[str], raw: Optional[dict]) -> dict[str, Any]:
    """What a run found, beside the raw arm of the same seed; or why there is nothing to compare."""
    if found is None:
        return {"error": error}
    if raw is None:
        return found
    if found["held_out_bytes"] != raw["held_out_bytes"]:
        return {"error": f"scored on other text: {found['held_out_bytes']:,} bytes, raw: {raw['held_out_bytes']:,}"}
    return found | {"gain": raw["bits_per_byte"] - found["bits_per_byte"]}


def write_corpora(texts: Sequence[str], plan: Plan, folder: Path) -> tuple[Path, Path, dict[str, int]]:
    """(held-out file, web-like file, pages of each kind). Files that hold the same already are left alone.

    Near-duplicates among the clean documents go first: no arm shall train on what it is scored on. Edits change held-out
    documents as well, so these are given as FineWeb's edits leave them: the same text in every arm.
    """
    documents = distinct(texts)
    held_out = list(distinct(_edited(take(documents, plan.held_out))))
    clean = take(documents, plan.megabytes)
    if not clean:
        raise CramError(f"{megabytes(texts):.1f} MB of clean text are no more than the {plan.held_out} MB to hold out; "
                        "give more --files")
    pages, kinds = make_web(clean, plan.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, written in (("held_out", held_out), ("web", pages)):
        path = folder / f"{name}.jsonl"
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in written).encode()
        if not path.exists() or path.read_bytes() != content:      # its time counts: a new file would repeat every run
            replace_durably(path, content)
        paths.append(path)
    return paths[0], paths[1], kinds


def _edited(texts: list[str]) -> list[str]:
    """The documents after FineWeb's edits, without those that are left empty or would change once more."""
    ask = load("filters/fineweb").data.edits
    once, _ = edits.edit(texts, ask, edits.Account())
    twice, _ = edits.edit(once, ask, edits.Account())
    return [text for text, again in zip(once, twice) if text and text == again]


def _run(arm: str, seed: int, settings: tuple[str, ...], plan: Plan, place: tuple[str, Path, Path, Path]) -> dict[str, Any]:
    """One run, or what is left of it; its row."""
    device, work, held_out, web = place
    settings = (*SHARED, *settings, f"data.files=[{web}]", f"data.validation_files=[{held_out}]", f"seed={seed}",
                f"name={arm.replace(' + ', '-')}-{seed}", f"out={work}", f"budget={plan.budget}", f"train.device={device}",
                *plan.overrides)
    scores, ledger, links = finish(settings)
    train, seen = json.loads((links / "data" / "manifest.json").read_text())["splits"]["train"], ledger.tokens
    return {"bits_per_byte": scores["held_out"]["bits_per_byte"], "documents": train["documents"],
            "megabytes": train["bytes"] / 1e6, "tokens": train["tokens"], "tokens_seen": seen, "epochs": seen / train["tokens"],
            "held_out_bytes": scores["held_out"]["bytes"], "budget": plan.budget}


def conclude(rows: Sequence[dict]) -> list[str]:
    """The verdict: mean and spread of each arm, and its paired gain over raw."""
    lines = []
    for arm in ARMS:
        scores = [row["bits_per_byte"] for row in rows if row["arm"] == arm and "bits_per_byte" in row]
        gains = [row["gain"] for row in rows if row["arm"] == arm and "gain" in row]
        if not scores:
            continue
        spread = f" (standard deviation {statistics.stdev(scores):.4f})" if len(scores) > 1 else ""
        line = f"Verdict, {arm}: {statistics.mean(scores):.4f} bits per byte{spread}, {len(scores)} seed(s)"
        if arm != RAW and gains:
            line += f"; less than raw by {show_gain(gains)}" + " (95%)" * (len(gains) > 1)
        lines.append(line + ".")
    return lines
