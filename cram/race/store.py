"""Results on disk, one file each, found again as long as everything that they depend on is the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Mapping

from cram.errors import CramError
from data_prep.files import replace_durably


def key_of(facts: Mapping[str, Any]) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Store:
    """Results of a race. retry: failures are not found again."""

    def __init__(self, folder: Path, retry: bool = False):
        self.folder, self.retry = folder, retry

    def path(self, *names: str) -> Path:
        return self.folder.joinpath(*names[:-1], f"{names[-1]}.json")

    def look(self, facts: Mapping[str, Any], *names: str) -> Any:
        """The result kept under these names, or None when there is none, or one of other facts."""
        path = self.path(*names)
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            key, value = kept["key"], kept["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise CramError(f"{path}: not a result of a race ({error}); remove it and run the same command again") from error
        failed = isinstance(value, dict) and value.get("failure") is not None
        return value if key == key_of(facts) and not (failed and self.retry) else None

    def keep(self, facts: Mapping[str, Any], value: Any, *names: str) -> Any:
        """Write a result durably; returns it."""
        path = self.path(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"key": key_of(facts), "facts": facts, "result": value}, indent=1, default=str)
        replace_durably(path, (content + "\n").encode())
        return value

    def bring(self, facts: Mapping[str, Any], make: Callable[[], Any], *names: str) -> Any:
        """Find a result again or make it."""
        found = self.look(facts, *names)
        return found if found is not None else self.keep(facts, make(), *names)
