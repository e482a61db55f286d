"""Scoring a model on benchmarks, one after the other; what is scored is kept, so that a killed evaluation goes on.

A result is kept under a name made of everything it depends on: weights, tokenizer, examples, settings and the version of the
task. Asked for again, it is read, not made. An evaluation that is asked for more tasks later adds those alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import xxhash

from cram.config import keys_under, lookup
from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.evaluate.task import Rows, Split, Task
from data_prep.errors import DataError
from data_prep.files import file_hash, replace_durably
from data_prep.overlap import overlap


def score_tasks(subject: Subject, tasks: Sequence[Task], config: Any, store: Path, say: Callable[[str], None],
                text_dir: Optional[Path] = None) -> dict[str, dict]:
    """{task: its result}, in the order asked. What cannot be scored is {"skipped": why}, and said.

    store: folder of kept results. text_dir: of the text stage, whose training text is looked through for the examples; None:
    unknown. A result is what ``Task.score`` returns and "seconds", "overlap" ({"examples", "comparable", "found"}, or None).
    """
    mirror, results = config.evaluate.mirror or config.data.mirror, {}
    for task in tasks:
        if subject.kind not in task.kinds:
            results[task.name] = {"skipped": f"for {' and '.join(task.kinds)} models, this one is {subject.kind}"}
        else:
            try:  # one that cannot be scored must not cost the others
                data = {split: split.read(mirror) for split in task.reads}
                results[task.name] = _score(subject, task, data, config, store, say, text_dir)
            except (DataError, CramError) as error:
                results[task.name] = {"skipped": str(error)}
        if "skipped" in results[task.name]:
            say(f"{task.name}: skipped, {results[task.name]['skipped']}")
    return results


def _score(subject: Subject, task: Task, data: dict[Split, Rows], config: Any, store: Path, say, text_dir) -> dict:
    identity = {"task": task.name, "version": task.version, "kind": subject.kind, "row": subject.row, "model": subject.identity,
                "settings": {key: lookup(config, key) for key in keys_under(task.keys)},
                "data": {str(split): _hash(rows.rows) for split, rows in data.items()}}
    result = _kept(store, task.name, identity)
    if result is None:
        begin = time.monotonic()
        result = task.score(subject, data, config, say)
        result |= {"chance": task.chance, "seconds": round(time.monotonic() - begin, 1)}
        _keep(store, task.name, identity, result)
        say(f"{task.name}: {score_line(result)}, {result['seconds']:,.1f} s")
    else:
        say(f"{task.name}: {score_line(result)} (kept)")
    return result | {"overlap": _overlap(task, data, store, text_dir)}


def score_line(result: dict) -> str:
    """'accuracy 61.2 (60.9 to 61.6) of 67,000', in hundredths."""
    spread = f" ({100 * result['low']:.1f} to {100 * result['high']:.1f})" if result.get("low") is not None else ""
    return f"{result['metric']} {100 * result['score']:.1f}{spread} of {result['examples']:,}"


def _overlap(task: Task, data: dict[Split, Rows], store: Path, text_dir: Optional[Path]) -> Optional[dict]:
    """How many of the examples that are scored share 13 words with the training text."""
    if text_dir is None or not data:
        return None
    held_out = [rows for split, rows in data.items() if split.split != "train"] or list(data.values())
    name, scored = f"overlap-{task.name}", [row for rows in held_out for row in rows.rows]
    identity = {"examples": _hash(scored), "text": file_hash(text_dir / "manifest.json")}
    found = _kept(store, name, identity)
    if found is None:
        found = overlap(text_dir, {task.name: scored})[task.name]._asdict()
        _keep(store, name, identity, found)
    return found


def _hash(rows: list[dict]) -> str:
    digest = xxhash.xxh3_128()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _path(store: Path, name: str, identity: dict) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return store / f"{name.replace('/', '_').replace(':', '_')}-{digest[:16]}.json"


def _kept(store: Path, name: str, identity: dict) -> Optional[dict]:
    path = _path(store, name, identity)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["result"] if kept["identity"] == json.loads(json.dumps(identity)) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CramError(f"{path}: not a kept score ({error}); delete the file, and the task is scored again") from None


def _keep(store: Path, name: str, identity: dict, result: dict) -> None:
    store.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"identity": identity, "result": result}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_durably(_path(store, name, identity), content.encode())
