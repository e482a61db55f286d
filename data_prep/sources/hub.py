"""A Hugging Face dataset: streamed from the hub, or read from a local mirror of it.

Mirror layout, for ``dataset`` = owner/name, the first that exists (EXT = .jsonl .jsonl.xz .jsonl.gz
.jsonl.zst .parquet)::

    MIRROR/dataset/[subset/]split EXT
    MIRROR/dataset/[subset/][data/]split-* EXT          shards, sorted
    MIRROR/dataset EXT                                  a plain corpus: one file, no splits

Only parquet and JSON datasets: loading scripts run foreign code and were removed from ``datasets`` 4.0.
"""

from __future__ import annotations

import difflib
import glob
from pathlib import Path
from typing import Any, Iterator

import pyarrow as pa

from data_prep.errors import DataError
from data_prep.sources.batches import batched
from data_prep.sources.files import as_text, describe, missing_field, read_files
from data_prep.sources.streams import TextDecoder

EXTENSIONS = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet")
ELSEWHERE = "download it on a connected machine and set data.mirror=FOLDER, or use data.source=files with data.files"


def find_in_mirror(mirror: Path, dataset: str, subset: str | None, split: str) -> list[Path]:
    """The files of one split in the mirror; DataError that lists near names when there are none."""
    if not mirror.is_dir():
        raise DataError(f"data.mirror: {mirror} is no folder; point it to a mirror laid out "
                        f"<dataset>/[<subset>/]<split>.jsonl.xz")
    wanted = "/".join(filter(None, (dataset, subset, split)))
    if found := present(mirror, dataset, subset, split):
        return found
    names = sorted({_name(path, mirror) for path in mirror.rglob("*") if path.name.endswith(EXTENSIONS)})
    above = sorted({name.partition(f"/{dataset}")[0] for name in names if f"/{dataset}" in name})
    deeper = [mirror / folder for folder in above if present(mirror / folder, dataset, subset, split)]
    if deeper:
        raise DataError(f"data.mirror: {mirror} has no {wanted}, but a folder in it has: set data.mirror="
                        f"{' or data.mirror='.join(map(str, deeper))}")
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4) or names[:5]
    raise DataError(f"data.mirror: {mirror} has no {wanted} ({', '.join(EXTENSIONS)}); "
                    f"it has {', '.join(near) or 'no such files at all'}"
                    f"{' ...' if len(names) > len(near) else ''}: correct data.dataset, data.subset or data.split")


def present(mirror: Path, dataset: str, subset: str | None, split: str) -> list[Path]:
    """The files of one split, as the module says; none when there are none."""
    base = mirror / dataset / subset if subset else mirror / dataset
    for extension in EXTENSIONS:
        if (whole := base / f"{split}{extension}").is_file():
            return [whole]
        for folder in (base, base / "data"):
            shards = sorted(glob.glob(f"{glob.escape(str(folder / split))}-*{extension}"))
            if shards:
                return [Path(shard) for shard in shards]
        if subset is None and (plain := mirror / f"{dataset}{extension}").is_file():
            return [plain]
    return []


def _name(path: Path, mirror: Path) -> str:
    name = path.relative_to(mirror).as_posix()
    return next(name.removesuffix(extension) for extension in EXTENSIONS if name.endswith(extension))


def read_mirror(data: Any, decoder: TextDecoder) -> tuple[dict[str, Any], Iterator[pa.RecordBatch]]:
    """(provenance, batches) of ``data.dataset`` from ``data.mirror``."""
    paths = find_in_mirror(Path(data.mirror), data.dataset, data.subset, data.split)
    return {"files": describe(paths)}, read_files(paths, data.text_field, decoder)


def read_hub(data: Any) -> tuple[dict[str, Any], Iterator[pa.RecordBatch]]:
    """(provenance, batches) of ``data.dataset``, streamed with the ``datasets`` library.

    What the hub states of the licence enters the provenance when reading begins.
    """
    provenance = {"revision": data.revision, "licence": None}
    return provenance, batched(_stream(data, provenance))


def _stream(data: Any, provenance: dict[str, Any]) -> Iterator[tuple[str, str]]:
    import datasets                               # slow to import, and only this source needs it
    from huggingface_hub.errors import HfHubHTTPError

    place = "/".join(filter(None, (data.dataset, data.subset, data.split)))
    row = 0
    try:
        builder = datasets.load_dataset_builder(data.dataset, data.subset, revision=data.revision)
        if builder.name not in ("parquet", "json"):
            raise DataError(f"data.dataset: {data.dataset} is stored as {builder.name!r}; only parquet and JSON "
                            f"datasets are read: take its parquet version (data.revision=refs/convert/parquet), or {ELSEWHERE}")
        provenance["licence"] = builder.info.license or None
        stream = builder.as_streaming_dataset(split=data.split)
        for example in stream:
            if data.text_field not in example:
                raise missing_field(f"{place}: row {row}", data.text_field, list(example))
            yield as_text(example[data.text_field], f"{place}: row {row}", data.text_field), f"{place}:{row}"
            row += 1
    except DataError:
        raise
    # The bases of HfHubHTTPError are OSError (missing datasets too) and the error of the HTTP library in use.
    except (OSError, *HfHubHTTPError.__bases__) as error:
        raise DataError(f"data.dataset: cannot reach or find {place} after row {row} ({_brief(error)}); "
                        f"check the name and the network, or {ELSEWHERE}") from None
    except (RuntimeError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data.dataset: cannot read {place} after row {row} ({_brief(error)}); "
                        f"check data.subset, data.split and data.revision, or {ELSEWHERE}") from None


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
