"""A text folder as the text stage writes it, made by hand: every fate, clusters, hostile and right-to-left text."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data_prep.corpus import prose

SCRIPT = "<script>alert('cram')</script><img src=x onerror=alert(1)> & more text"
DENSE = "%%% ### $$$ "
HEBREW = "שלום עולם, זה טקסט מימין לשמאל. " * 5
FATES = ["train", "validation", "min_chars", "max_repeated_line_fraction", "max_contaminated_ngrams", "exact_dedup",
         "near_dedup", "validation_surplus"]
RULES = [("chars", "min_chars", 200), ("repeated_lines", "max_repeated_line_fraction", 0.3),
         ("contaminated_ngrams", "max_contaminated_ngrams", 0)]
LATE, THRESHOLD = "max_tokens_per_char", 0.5


def documents() -> list[tuple[str, str, str]]:
    """(text, origin, fate), in reading order."""
    long = prose(60)
    rows = [(text, f"https://{'news' if index % 3 else 'blog'}.example.org:8080/page/{index}", "train")
            for index, text in enumerate(long)]
    rows[7] = (rows[7][0], rows[7][1], "validation")
    rows[8] = (rows[8][0], rows[8][1], "validation_surplus")
    rows += [(f"short {number}", f"texts/short.txt#{number}", "min_chars") for number in range(12)]
    rows += [(SCRIPT + " " + long[0][:300], "https://evil.example/<b>", "train"), (HEBREW, "https://he.example/", "train")]
    rows += [("same line here\n" * 30, f"texts/lines.jsonl:{number}", "max_repeated_line_fraction") for number in range(3)]
    rows += [(long[3].upper(), "copies.jsonl:1", "exact_dedup")]
    rows += [(long[4].replace(" ba", " changed", 1 + number), f"copies.jsonl:{2 + number}", "near_dedup")
             for number in range(4)]
    rows += [("It was the best of times " * 12, "set.jsonl:1", "max_contaminated_ngrams")]
    rows += [(DENSE * 30, "dense.jsonl:1", "train"), (DENSE * 31, "dense.jsonl:2", "validation"),
             (DENSE * 32, "dense.jsonl:3", "validation_surplus")]
    return rows


def write_text_dir(folder: Path, rows: list[tuple[str, str, str]] | None = None, parts: int = 2) -> Path:
    """Write the folder; the documents of each fate and all counts follow from ``rows``."""
    rows = documents() if rows is None else rows
    folder.mkdir(parents=True)
    fate = np.array([FATES.index(name) for *_, name in rows], np.uint8)
    sizes = np.array([len(text.encode()) for text, *_ in rows], np.int32)
    bounds = np.linspace(0, len(rows), parts + 1).astype(int)
    entries = []
    for number, (low, high) in enumerate(zip(bounds, bounds[1:])):
        table = _table(rows[low:high], sizes[low:high], fate[low:high])
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=7)
        np.save(folder / f"fate-{number:05d}.npy", fate[low:high])
        entries.append({"file": f"part-{number:05d}.parquet", "documents": int(high - low), "bytes": int(sizes[low:high].sum()),
                        "train_documents": int(np.sum(fate[low:high] == 0))})
    held = [row for row in rows if row[2] == "validation"][::-1]          # in another order than they were read
    pq.write_table(pa.table({"text": pa.array([row[0] for row in held], pa.string()),
                             "origin": pa.array([row[1] for row in held], pa.string())}), folder / "validation.parquet")
    _write_clusters(folder / "clusters.parquet", fate, bounds)
    (folder / "contamination.jsonl").write_text("".join(
        json.dumps({"origin": origin, "set": "novels", "ngram": text[:40]}) + "\n"
        for text, origin, name in rows if name == "max_contaminated_ngrams"))
    splits = {name: {"documents": int(np.sum(fate == code)), "bytes": int(sizes[fate == code].sum())}
              for code, name in enumerate(FATES[:2])}
    (folder / "manifest.json").write_text(json.dumps({
        "version": 1, "source": {"source": "files", "files": ["<a>"]}, "funnel": _funnel(fate, sizes), "samples": {},
        "edits": [{"edit": "emails", "documents": 2, "items": 3, "bytes": 60}],
        "fates": FATES, "parts": entries, "splits": splits,
        "evaluation_sets": [{"set": "novels", "files": 1, "items": 9, "short_items": 2, "ngrams": 70}],
        "statistics": [{"name": name, "rule": rule, "threshold": threshold} for name, rule, threshold in RULES]}))
    return folder


def tokens_per_char(text: str) -> float:
    """What a tokenizer might give."""
    return 0.9 if text.startswith(DENSE) else 0.25


def packed_fate(text: str, fate: str) -> str:
    """The fate of a document after packing: its rule looks at what is kept so far."""
    return LATE if fate in ("train", "validation") and tokens_per_char(text) > THRESHOLD else fate


def write_data_dir(folder: Path, text_dir: Path, rule: bool = True) -> Path:
    """The manifest and the numbers of a data folder packed from the text, with the rule LATE or without; 4 bytes a token."""
    text = json.loads((text_dir / "manifest.json").read_text())
    folder.mkdir()
    parts = [pq.read_table(text_dir / part["file"])["text"].to_pylist() for part in text["parts"]]
    fates = [np.load(text_dir / f"fate-{number:05d}.npy") for number in range(len(parts))]
    train = {f"train-{number:05d}": [text for text, code in zip(texts, fate) if code == 0]
             for number, (texts, fate) in enumerate(zip(parts, fates))}
    shards = train | {"validation-00000": pq.read_table(text_dir / "validation.parquet")["text"].to_pylist()}
    gone = {name: [each for each in texts if rule and tokens_per_char(each) > THRESHOLD] for name, texts in shards.items()}
    splits = {}
    for split, counts in text["splits"].items():
        lost = [each for name, texts in gone.items() if name.startswith(split) for each in texts]
        splits[split] = {"documents": counts["documents"] - len(lost), "bytes": counts["bytes"] - sum(map(_size, lost))}
        splits[split]["tokens"] = splits[split]["bytes"] // 4
    *rows, _ = text["funnel"]
    if rule:
        for name, texts in shards.items():
            np.save(folder / f"{name}.tokens_per_char.npy", np.array([tokens_per_char(each) for each in texts], np.float32))
        lost = sum(gone.values(), [])
        rows.append({"rule": LATE, "dropped_documents": len(lost), "dropped_bytes": sum(map(_size, lost))})
    left = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    (folder / "manifest.json").write_text(json.dumps({
        "version": 1, "funnel": [*rows, {"rule": "kept", **left}], "splits": splits,
        "config": {LATE: THRESHOLD if rule else None}}))
    return folder


def _size(text: str) -> int:
    return len(text.encode())


def _table(rows, sizes, fate):
    texts = [row[0] for row in rows]
    lines = [text.split("\n") for text in texts]
    hit = fate == FATES.index("max_contaminated_ngrams")
    return pa.table({
        "text": pa.array(texts, pa.string()), "origin": pa.array([row[1] for row in rows], pa.string()), "bytes": sizes,
        "chars": np.array([len(text) for text in texts], np.int32),
        "repeated_lines": np.array([1 - len(set(each)) / len(each) for each in lines], np.float32),
        "placeholder": np.array(["lorem ipsum" in text for text in texts], bool),
        "contaminated_ngrams": hit.astype(np.int32),
        "contaminated_by": pa.array(["novels" if each else None for each in hit], pa.string()),
        "contaminated_example": pa.array([text[:40] if each else None for text, each in zip(texts, hit)], pa.string()),
        "language": pa.array(["he" if text == HEBREW else "en" for text in texts], pa.string()),
        "language_probability": np.full(len(rows), 0.9, np.float32), "key_high": sizes.astype(np.uint64),
        "key_low": sizes.astype(np.uint64), "band_00": sizes.astype(np.uint64)})


def _write_clusters(path, fate, bounds):
    near, exact = np.flatnonzero(fate == FATES.index("near_dedup")), np.flatnonzero(fate == FATES.index("exact_dedup"))
    members = np.concatenate([[4] * bool(len(near)), near, [3] * bool(len(exact)), exact]).astype(np.int64)
    clusters = np.repeat([4, 3], [1 + len(near) if len(near) else 0, 1 + len(exact) if len(exact) else 0])
    parts = np.searchsorted(bounds, members, side="right") - 1
    pq.write_table(pa.table({"part": pa.array(parts, pa.int32()), "row": pa.array(members - bounds[parts], pa.int32()),
                             "cluster": pa.array(clusters, pa.int64()),
                             "kind": ["exact" if index in exact else "near" for index in members]}), path)


def _funnel(fate, sizes):
    dropped = [{"rule": name, "dropped_documents": int(np.sum(fate == code)), "dropped_bytes": int(sizes[fate == code].sum())}
               for code, name in enumerate(FATES) if code > 1]
    kept = {"documents": int(np.sum(fate <= 1)), "bytes": int(sizes[fate <= 1].sum())}
    return [{"rule": "read", "documents": len(fate) + 1, "bytes": int(sizes.sum()) + 100 + 70},
            {"rule": "normalise", "dropped_documents": 0, "dropped_bytes": 100, "changed_documents": 5},
            {"rule": "edits", "dropped_documents": 0, "dropped_bytes": 70, "changed_documents": 2},
            {"rule": "empty", "dropped_documents": 1, "dropped_bytes": 0}, *dropped, {"rule": "kept", **kept}]
