"""What a benchmark is: where its examples lie, whom it can score, and the function that scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from cram.errors import CramError
from data_prep.sources.rows import read_file, read_rows


FILE = "file"  # as split: the dataset is the path of one file


class Split(NamedTuple):
    """A part of a dataset, by its names on the hub; a mirror has it as <dataset>/[<subset>/]<split>.jsonl."""

    dataset: str
    subset: Optional[str]
    split: str

    def __str__(self) -> str:
        return self.dataset if self.split == FILE else "/".join(filter(None, self))

    def read(self, mirror: Optional[str]) -> Rows:
        """Its rows, from the mirror or the hub. DataError when they are not to be had."""
        if self.split == FILE:
            return Rows(self.dataset, read_file(Path(self.dataset)))
        return Rows(*read_rows(*self, mirror))


class Rows(NamedTuple):
    """The examples of a split in their order, and where they were read (for messages): a file, or a name on the hub."""

    place: str
    rows: list[dict]

    def get(self, number: int, *fields: str) -> Any:
        """The value of the first of ``fields`` that row ``number`` (from 0) has; CramError naming place and row when it has
        none. Several names are one column as different copies of a dataset call it."""
        row = self.rows[number]
        for field in fields:
            if field in row:
                return row[field]
        raise CramError(f"{self.place}, row {number + 1}: has no field {' or '.join(fields)} (it has {', '.join(row)}); fetch "
                        "the file again")


@dataclass(frozen=True)
class Task:
    """One benchmark.

    name: as in ``tasks=``; ``glue.mrpc`` belongs to the group ``glue``. kinds: of the models that it can score. chance: score
    of guessing, in the unit of ``metric``; None where guessing has none. reads: splits that must be there. version: goes up
    when the same model would score otherwise. keys: configuration keys, or sections, that the score depends on.

    score: (subject, {split: Rows}, config, say) -> a JSON-ready dictionary with at least "metric", "score" (accuracies
    and correlations in [-1, 1]), "low" and "high" (a 95% interval, or the spread over seeds; null where neither makes sense)
    and "examples".
    """

    name: str
    what: str
    source: str
    kinds: tuple[str, ...]
    metric: str
    chance: Optional[float]
    reads: tuple[Split, ...]
    score: Callable[..., dict]
    version: int = 1
    keys: tuple[str, ...] = ()
