"""Where text comes from. A source is a provenance record and a stream of Arrow record batches.

``batches`` have the columns text and origin (batches.py). Nothing is read before the first batch is
asked for, except what it takes to see that the source exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator

import pyarrow as pa

from data_prep.errors import DataError
from data_prep.sources.batches import batched
from data_prep.sources.docstrings import find_package, read_docstrings
from data_prep.sources.files import describe, expand, read_files
from data_prep.sources.hub import read_hub, read_mirror
from data_prep.sources.streams import TextDecoder


@dataclass
class Source:
    """provenance: JSON-able facts for the manifest. batches: the documents, once. decoder: counts what was no UTF-8."""

    provenance: dict[str, Any]
    batches: Iterator[pa.RecordBatch]
    decoder: TextDecoder

    def share_read(self) -> float | None:
        """Share of the files that was read so far, 0 to 1; None when the source is no list of files."""
        return None if self.decoder.position is None else self.decoder.position.share()

    def remarks(self) -> list[str]:
        """What people should know of the text that was read so far, a line each."""
        return self.decoder.remarks()


def open_source(data: Any) -> Source:
    """The source that the ``data`` section names; DataError when it is missing."""
    decoder = TextDecoder(data.invalid_utf8)
    if data.source == "installed-docs":
        if not data.packages:
            raise DataError("data.packages is empty; name installed packages, as in data.packages=[torch,numpy]")
        packages = [find_package(name) for name in dict.fromkeys(data.packages)]
        provenance = {"packages": {package.name: package.version for package in packages},
                      "licence": {package.name: package.licence for package in packages}}
        return Source({"source": "installed-docs", **provenance}, batched(read_docstrings(packages)), decoder)
    if data.source == "files":
        paths = expand(list(data.files))
        return Source({"source": "files", "text_field": data.text_field, "files": describe(paths)},
                      read_files(paths, data.text_field, decoder), decoder)
    if data.source == "hub":
        if not data.dataset:
            raise DataError("data.dataset is not set; name a Hugging Face dataset, "
                            "as in data.dataset=HuggingFaceFW/fineweb-edu")
        provenance, batches = read_mirror(data, decoder) if data.mirror else read_hub(data)
        provenance.update(source="hub", dataset=data.dataset, subset=data.subset, split=data.split,
                          text_field=data.text_field)
        return Source(provenance, batches, decoder)
    raise DataError(f"data.source: {data.source!r} is unknown; known are installed-docs, files, hub")


def open_held_out(data: Any) -> Source | None:
    """The files of data.validation_files, or None when there are none."""
    if not data.validation_files:
        return None
    paths = expand(list(data.validation_files), "data.validation_files")
    decoder = TextDecoder(data.invalid_utf8)
    return Source({"source": "files", "files": describe(paths)}, read_files(paths, data.text_field, decoder), decoder)
