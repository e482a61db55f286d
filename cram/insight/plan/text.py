"""How much text there is to read: exactly, where it has been prepared; else estimated, and from what."""

from __future__ import annotations

import glob
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from cram.pipeline import STAGES
from cram.stages import Runner

# Bytes a token, by entries of the vocabulary: the demo's text (reports of its data stage), and what bert_day foresees.
MEASURED = ((4096, 3.37), (32768, 4.44))
STORED = 0.65           # bytes on disk for a byte of text, compressed: the demo's measure and text stages
PACKED = (".gz", ".xz", ".zst", ".parquet")


@dataclass(frozen=True)
class Text:
    """tokens: to train on, held_out: to validate on; None where unknown. told: how that is known. disk: bytes by what takes them,
    of text and shards; exact: whether both were read from finished results."""

    tokens: Optional[int]
    held_out: Optional[int]
    told: str
    exact: bool
    disk: dict[str, int]
    vocab_size: Optional[int] = None


def find_text(config) -> Text:
    """The text of this configuration. Reads results and sizes of files, prepares nothing."""
    folders = {plan.stage.name: plan.folder for plan in Runner(STAGES, config, lambda line: None).plan("data")
               if plan.state == "fresh"}
    disk, seen = dict.fromkeys(folders, 0), set()
    for name, folder in folders.items():
        for path in (path for path in folder.rglob("*") if path.is_file()):
            status = path.stat()
            if (status.st_dev, status.st_ino) not in seen:  # a part of the text may be one file under two names
                seen.add((status.st_dev, status.st_ino))
                disk[name] += status.st_size
    if "data" in folders:
        manifest = json.loads((folders["data"] / "manifest.json").read_text(encoding="utf-8"))
        splits = manifest["splits"]
        return Text(splits["train"]["tokens"], splits["validation"]["tokens"], "counted in the prepared shards", True, disk,
                    manifest["vocab_size"])
    size, whence = _source_bytes(config)
    if size is None:
        return Text(None, None, f"unknown: {whence}; it is known after: cram data", False, disk)
    each, width = bytes_per_token(config.tokenizer.vocab_size), 2 if config.tokenizer.vocab_size <= 65_536 else 4
    tokens = round(size / each)
    return Text(tokens, round(tokens * config.data.validation_fraction), f"estimated: {whence} at {each:.1f} bytes a token, before "
                "filters and duplicates take their share", False, {"text": round(STORED * size), "data": width * tokens})


def bytes_per_token(vocab_size: int) -> float:
    """Of English, on a line over the logarithm of the vocabulary between what was measured."""
    (low, few), (high, many) = MEASURED
    share = (math.log(vocab_size) - math.log(low)) / (math.log(high) - math.log(low))
    return few + (many - few) * min(max(share, -0.5), 1.25)


def _source_bytes(config) -> tuple[Optional[int], str]:
    """(bytes of text that will be read, in words); None when nobody can say yet."""
    data = config.data
    if data.source == "files":
        files = [path for name in data.files for path in map(Path, glob.glob(name, recursive=True)) if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if any(path.suffix in PACKED for path in files) or not files:
            return data.max_bytes, "data.max_bytes" if data.max_bytes else "the files are compressed, or not there"
        size = min(size, data.max_bytes or size)
        return size, f"{size / 1e6:,.1f} MB of files"
    if data.source == "hub" and data.max_bytes:
        return data.max_bytes, f"data.max_bytes, {data.max_bytes / 1e6:,.0f} MB"
    return None, "the text has not been prepared"


def disk_folder(config) -> Path:
    """Where results go, or the nearest folder above that exists."""
    out = Path(config.out).absolute()
    return next(path for path in [out, *out.parents] if path.exists())
