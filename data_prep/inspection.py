"""Looking at what the data stages did: counts, histograms, samples and clusters, as one JSON-able dict.

Reads the artifacts of a run and decides nothing. Statistics are read column by column and texts only where they are
shown: memory holds a few numbers a document and the texts of one part. All choices are seeded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import pyarrow as pa

from data_prep.cluster_examples import cluster_report, read_clusters
from data_prep.errors import DataError
from data_prep.filters import RULES
from data_prep.histograms import spread
from data_prep.inspection_decided import Decided
from data_prep.inspection_funnel import bytes_per_token, funnel_steps, read_packed
from data_prep.inspection_groups import grouped, package_of, place_of
from data_prep.passages import repeated_passages
from data_prep.text import read_split

SAMPLES, SAMPLE_CHARS = 5, 600
EXAMPLES = 5                                # shared n-grams shown of each evaluation set
PASSAGES, PASSAGE_BYTES = 20, 20_000_000    # passages shown, and the text they are looked for in
PASSAGE_MEMORY = 1 << 26
COPIES = ("exact_dedup", "near_dedup")
HIDDEN = re.compile(r"text|origin|key_(high|low)|band_\d+|language|contaminated_(by|example)")


def inspect_text(text_dir: Path, tokenizer_dir: Optional[Path] = None, data_dir: Optional[Path] = None,
                 seed: int = 0) -> dict[str, Any]:
    """Everything there is to show about a text folder, and about the tokenizer and data folders made from it, if given.

    Raises DataError when a file is missing or damaged, or the data folder was made from other text.
    """
    text = Decided(text_dir)
    packed = read_packed(data_dir, text.manifest) if data_dir is not None else None
    rate, how = bytes_per_token(text_dir, tokenizer_dir, packed)
    rules = [_rule(text, **entry) for entry in text.manifest["statistics"]]
    if packed is not None and packed["config"]["max_tokens_per_char"] is not None:
        rules.append(text.apply_token_rule(data_dir, packed["config"]["max_tokens_per_char"]))
        assert rules[-1]["dropped"] == packed["funnel"][-2]["dropped_documents"], "documents dropped in packing are found"
    names, docstrings = text.names(), text.manifest["source"].get("source") == "installed-docs"
    found = read_clusters(text.folder / "clusters.parquet", text.first)
    return {
        "source": text.manifest["source"], "documents": len(text), "seed": seed,
        "tokens": {"bytes_per_token": rate, "how": how}, "funnel": funnel_steps(text.manifest, packed, rate),
        "rules": rules,
        "statistics": [row for name in names if not HIDDEN.fullmatch(name) and (row := _statistic(text, name, rules))],
        "samples": _samples(text, rules, names, found, seed),
        "clusters": cluster_report(text, *found, text.fate, text.fates, seed) | {
            name: int(np.sum(text.fate == text.fates.index(name))) for name in COPIES},
        "languages": grouped(text, text.kept, "language", lambda code: code or "unknown") if "language" in names else [],
        "origins": grouped(text, text.kept, "origin", package_of if docstrings else place_of),
        "evaluation_sets": text.manifest.get("evaluation_sets") or [], "contamination": _contamination(text),
        "passages": _passages(text),
    }


# ---- statistics


def _rule(text: Decided, name: str, rule: str, threshold: Any) -> dict[str, Any]:
    """beyond: documents that the rule alone would drop; dropped: those it dropped first."""
    keeps = next(each.keeps for each in RULES if each.name == rule)
    beyond = int(sum(np.sum(~keeps(columns[name], threshold)) for columns in text.columns(name)))
    return {"rule": rule, "statistic": name, "threshold": threshold, "beyond": beyond,
            "dropped": int(np.sum(text.fate == text.fates.index(rule)))}


def _statistic(text: Decided, name: str, rules: list[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """The spread of one statistic, with the rules on it; None where it holds no number."""
    values = text.column(name)
    if values.dtype.kind not in "biuf":
        return None
    rules = [rule for rule in rules if rule["statistic"] == name]
    here = np.isin(text.fate, [text.fates.index(rule["rule"]) for rule in rules])
    groups = np.where(text.kept, 0, np.where(here, 1, 2)).astype(np.uint8)
    thresholds = [rule["threshold"] for rule in rules]
    numbers = [each for each in thresholds if isinstance(each, (int, float)) and not isinstance(each, bool)]
    picture = spread(values, groups, numbers)
    return {"name": name, **picture, "rules": rules} if picture else None


# ---- samples


def _samples(text: Decided, rules: list[dict[str, Any]], names: list[str], found: tuple[np.ndarray, np.ndarray],
             seed: int) -> list[dict[str, Any]]:
    """For each fate: how many documents, and a few of them by chance with the numbers that decided."""
    generator, shown = np.random.default_rng(seed), []
    for code, fate in enumerate(text.fates):
        of_fate = np.flatnonzero(text.fate == code)
        chosen = np.sort(generator.choice(of_fate, min(SAMPLES, len(of_fate)), replace=False))
        columns = {rule["statistic"] for rule in rules if rule["rule"] == fate or fate == "train"}
        if fate == "max_contaminated_ngrams":
            columns |= {"contaminated_by", "contaminated_example"}
        columns = [name for name in names if name in columns]
        rows = text.rows(chosen, "text", "origin", *columns)
        copies = _copies(text, chosen, found) if fate in COPIES else [{}] * len(chosen)
        shown.append({"fate": fate, "documents": len(of_fate), "samples": [
            {"origin": row["origin"], "text": row["text"][:SAMPLE_CHARS], "chars": len(row["text"]),
             "values": {name: row[name] for name in columns} | copy} for row, copy in zip(rows, copies)]})
    return shown


def _copies(text: Decided, chosen: np.ndarray, found: tuple[np.ndarray, np.ndarray]) -> list[dict[str, str]]:
    """The origin of the document that each chosen one repeats."""
    documents, clusters = found
    if not len(documents):
        return [{}] * len(chosen)
    at = np.minimum(np.searchsorted(documents, chosen), len(documents) - 1)
    origins = text.rows(clusters[at], "origin")
    return [{"copy of": row["origin"]} if documents[index] == document else {}
            for row, index, document in zip(origins, at, chosen)]


# ---- evaluation sets


def _contamination(text: Decided) -> list[dict[str, Any]]:
    """For each evaluation set: documents dropped for it, and a few n-grams shared with it."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    path = text.folder / "contamination.jsonl"
    try:
        with open(path, encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                counts[row["set"]] += 1
                if counts[row["set"]] <= EXAMPLES:
                    examples.setdefault(row["set"], []).append({"origin": row["origin"], "ngram": row["ngram"]})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run: cram text --force") from None
    return [{"set": name, "documents": counts[name], "examples": examples[name]} for name in sorted(counts)]


# ---- repeated passages


def _passages(text: Decided) -> dict[str, Any]:
    """What training documents share, looked for in the first PASSAGE_BYTES of them."""
    seen = {"documents": 0, "bytes": 0}
    stays = text.kept[text.for_training]

    def batches() -> Iterator[pa.RecordBatch]:
        seen.update(documents=0, bytes=0)
        read = 0
        for batch in read_split(text.folder, "train"):
            if seen["bytes"] >= PASSAGE_BYTES:
                break
            read, batch = read + len(batch), batch.filter(pa.array(stays[read:read + len(batch)]))
            seen["documents"], seen["bytes"] = seen["documents"] + len(batch), seen["bytes"] + batch.column("text").nbytes
            yield batch

    found = repeated_passages(batches, most=PASSAGES, max_bytes=PASSAGE_MEMORY)
    return {"passages": [{"text": each.text[:SAMPLE_CHARS], "terms": each.terms, "occurrences": each.occurrences,
                          "documents": each.documents} for each in found], **seen}
