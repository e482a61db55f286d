"""Stage ``text``: what was measured -> rules -> exact and near duplicates -> split by document hash.

Decides the fate of every document, and changes no text. Writes

    part-00000.parquet ...    the measured parts (hard links: no second copy on the disk)
    fate-00000.npy ...        uint8 [documents of the part]: index into manifest["fates"]; 0 train, 1 validation, then reasons
    validation.parquet        the held-out documents (text, origin), in order of their hash
    clusters.parquet          documents in clusters of duplicates: part, row, cluster, kind (exact, near)
    contamination.jsonl       documents dropped for an evaluation set: origin, set, ngram

and ``manifest.json`` with provenance, the funnel (documents in = kept + dropped by rule), samples of what each rule
dropped, and the size of the splits. Memory: some thirty bytes a document, whatever their length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.artifact import link_or_copy, read_manifest, write_manifest
from data_prep.duplicates import Duplicates, find_duplicates
from data_prep.errors import DataError
from data_prep.filters import active_rules, decide
from data_prep.funnel import account_rows, check_splits
from data_prep.language import check_languages
from data_prep.listings import samples, write_clusters, write_contamination, write_documents
from data_prep.measured import Measured
from data_prep.parts import part_name
from data_prep.split import choose, held_out

TRAIN, VALIDATION = 0, 1


def prepare_text(data: Any, measured_dir: Path, out: Path, say: Callable[[str], None]) -> None:
    """Run the stage on what the measure stage wrote, into ``out``; ``data`` is the configuration section.

    Raises DataError when either split ends up empty.
    """
    if not 0 < data.validation_fraction < 1:
        raise DataError(f"data.validation_fraction is {data.validation_fraction}; it must lie between 0 and 1, as in 0.01")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    measured = Measured(measured_dir)
    if data.filters.languages:
        check_languages(data.filters.languages)
    rules = _rules(data)
    fates = ["train", "validation", *(rule.name for rule, _ in rules), "exact_dedup", "near_dedup", "validation_surplus"]
    code = {name: index for index, name in enumerate(fates)}
    sizes = measured.column("bytes")

    fate = _judge(measured, data.filters, rules)
    duplicates = find_duplicates(measured, data, fate == TRAIN)
    fate[duplicates.exact] = code["exact_dedup"]
    fate[duplicates.near] = code["near_dedup"]
    validation = _hold_out(measured, data, fate, duplicates, sizes, code["validation_surplus"])

    chosen = {name: fate == code[name] for name in ("train", "validation")}
    splits = {name: {"documents": int(np.sum(mask)), "bytes": int(np.sum(sizes[mask], dtype=np.int64))}
              for name, mask in chosen.items()}
    funnel = account_rows(measured.manifest["account"], fates, fate, sizes)
    check_splits({split: counts["documents"] for split, counts in splits.items()}, funnel, data)
    parts = _write_parts(measured, fate, out, say)
    write_documents(measured, validation, out / "validation.parquet")
    write_clusters(measured, duplicates, out / "clusters.parquet")
    write_contamination(measured, np.flatnonzero(fate == code.get("max_contaminated_ngrams", -1)), out / "contamination.jsonl")
    write_manifest(out, {
        "version": 1, "source": _provenance(measured, data), "funnel": funnel, "edits": measured.manifest["edits"],
        "evaluation_sets": measured.manifest["evaluation_sets"], "samples": samples(measured, fates, fate), "splits": splits,
        "validation_from_files": bool(measured.held.any()), "fates": fates, "parts": parts,
        "statistics": [{"name": rule.statistic, "rule": rule.name, "threshold": threshold} for rule, threshold in rules]})
    say(f"text: {funnel[0]['documents']:,} documents read ({funnel[0]['bytes'] / 1e6:,.1f} MB), "
        f"{splits['train']['documents']:,} for training ({splits['train']['bytes'] / 1e6:,.1f} MB), "
        f"{len(validation):,} held out ({splits['validation']['bytes'] / 1e6:,.2f} MB)")


def _provenance(measured: Measured, data: Any) -> dict[str, Any]:
    """Where the text came from; data.licence over what the source itself states."""
    source = measured.manifest["source"]
    return {**source, "licence": data.licence} if data.licence is not None else source


def _rules(data: Any) -> list[tuple[Any, Any]]:
    """(rule, threshold) of the rules that are on and have something to look at."""
    return [(rule, threshold) for rule, threshold in active_rules(data.filters)
            if data.decontaminate or rule.name != "max_contaminated_ngrams"]


def _judge(measured: Measured, filters: Any, rules: list[tuple[Any, Any]]) -> np.ndarray:
    """uint8 [documents]: TRAIN, or the code of the first rule that drops it. Held-out files are not judged."""
    fate = np.zeros(len(measured), np.uint8)
    names = sorted({rule.statistic for rule, _ in rules})
    for first, columns in zip(measured.first, measured.columns("bytes", *names)):
        decided = decide(columns, rules)
        fate[first:first + len(decided)] = np.where(decided >= 0, decided + 2, TRAIN)
    fate[measured.held] = TRAIN
    return fate


def _hold_out(measured: Measured, data: Any, fate: np.ndarray, duplicates: Duplicates, sizes: np.ndarray,
              surplus: int) -> np.ndarray:
    """Mark the validation documents in ``fate``, and those that do not fit as surplus; returns them in order of key."""
    chosen_from = measured.held if measured.held.any() else held_out(duplicates.keys, data.validation_fraction)
    candidates = np.flatnonzero(chosen_from & (fate == TRAIN))
    validation = candidates[choose(duplicates.keys[candidates], sizes[candidates].astype(np.int64), data.validation_max_bytes)]
    fate[candidates] = surplus
    fate[validation] = VALIDATION
    return validation


def _write_parts(measured: Measured, fate: np.ndarray, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The parts and the fate of their documents; returns the manifest's entries."""
    entries = []
    for number, (part, low, high) in enumerate(zip(measured.parts, measured.first, measured.first[1:])):
        link_or_copy(measured.folder / part["file"], out / part["file"], say)
        np.save(out / f"fate-{number:05d}.npy", fate[low:high])
        entries.append({"file": part["file"], "documents": part["documents"], "bytes": part["bytes"],
                        "train_documents": int(np.sum(fate[low:high] == TRAIN))})
    return entries


# ---- reading what was written


def read_part(text_dir: Path, number: int, columns: tuple[str, ...] = ("text",)) -> Iterator[pa.RecordBatch]:
    """Batches of the training documents of one part, in the order written. DataError when they are not all there."""
    text_dir = Path(text_dir)
    path, found = text_dir / f"{part_name(number)}.parquet", 0
    again = "run: cram text --force"
    try:
        train = np.load(text_dir / f"fate-{number:05d}.npy") == TRAIN
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != len(train):
                raise DataError(f"{path}: has {file.metadata.num_rows:,} documents, not the {len(train):,} that were judged; "
                                f"{again}")
            for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                yield batch.filter(pa.array(train[found:found + len(batch)]))
                found += len(batch)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: it or its fate file cannot be read ({str(error).splitlines()[0]}); {again}") from None


def read_split(text_dir: Path, split: str, columns: tuple[str, ...] = ("text",)) -> Iterator[pa.RecordBatch]:
    """Batches of a split that ``prepare_text`` wrote, in the order written. DataError when it is not all there."""
    text_dir = Path(text_dir)
    manifest = read_manifest(text_dir, "prepared text", ("funnel", "splits", "parts"))
    expected, found = manifest["splits"][split]["documents"], 0
    if split == "train":
        batches = (batch for number in range(len(manifest["parts"])) for batch in read_part(text_dir, number, columns))
    else:
        batches = _read_validation(text_dir / "validation.parquet", columns)
    for batch in batches:
        found += len(batch)
        yield batch
    if found != expected:
        raise DataError(f"{text_dir}: the {split} split has {found:,} documents, its manifest says {expected:,}; "
                        f"run the text stage again")


def _read_validation(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run the text stage again") from None
