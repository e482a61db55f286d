"""Real little runs for the league, and a forger who signs everything again."""

import copy
import functools
import hashlib
import json
import random
import tempfile
from pathlib import Path

import xxhash

from cram.insight.league.card import ledger_lines, read_card, write_card
from cram.insight.league.make import make_card
from cram.insight.league.pack import pack
from tests.cram.conftest import WORDS

SMALL = ("demo", "model.width=32", "model.heads=2", "train.sequence_length=32", "train.batch_tokens=512",
         "train.validation_tokens=512", "train.threads=1", "telemetry.heartbeat=0.5", "telemetry.log_every=5",
         "optimizer.lr=0.01", "data.source=files", "data.filters.min_chars=20", "data.validation_fraction=0.1",
         "data.filters.max_repeated_line_fraction=null", "data.workers=1", "tokenizer.vocab_size=300",
         "evaluate.minimal_pairs=0", "evaluate.sample_tokens=1", "telemetry.energy=false")


@functools.cache
def runs() -> Path:
    """A folder of runs on one text: ``clock`` (8 s), ``steps`` (80 steps), ``causal`` (80 steps), ``other`` (another seed)."""
    from cram.bench.runs import bring

    root = Path(tempfile.mkdtemp(prefix="cram-league-tests-"))
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "." for _ in range(400)]
    (root / "corpus.jsonl").write_text("".join('{"text": "%s"}\n' % text for text in documents))
    common = [*SMALL, f"data.files=[{root}/corpus.jsonl]", f"out={root}"]
    for name, more in (("clock", ["budget=8s", "train.reserve=2"]), ("steps", ["budget=80 steps"]), ("other", ["budget=80 steps", "seed=1"]),
                       ("causal", ["budget=80 steps", "objective.type=causal"])):
        kept = [each for each in common if name != "causal" or each != "demo"]
        bring([*(["demo_gpt"] if name == "causal" else []), *kept, f"name={name}", *more], "evaluate")
    return root


@functools.cache
def body(name: str, author: str = "Ada") -> dict:
    """The card of a run, unsigned."""
    return make_card(runs() / name, author)


class Forgery:
    """A card taken apart: change ``rows``, ``metrics``, ``body``, then ``write``: all hashes are made anew."""

    def __init__(self, name: str):
        self.body = copy.deepcopy(body(name))
        self.rows = copy.deepcopy(read_card(self.honest(name)).ledger.rows)
        self.metrics = copy.deepcopy(read_card(self.honest(name)).metrics)

    def honest(self, name: str) -> Path:
        path = runs() / f"{name}.card.json"
        if not path.exists():
            write_card(path, body(name))
        return path

    def train(self):
        return [row for row in self.metrics if row["kind"] == "train"]

    def set(self, key: str, value) -> None:
        """A configuration key, in the card and in what the run's id is made of."""
        *sections, last = key.split(".")
        place = self.body["config"]
        for section in sections:
            place = place[section]
        place[last] = value
        for stage in ("pretrain", "evaluate"):
            if key in self.body["stages"][stage]["identity"]["config"]:
                self.body["stages"][stage]["identity"]["config"][key] = value

    def write(self, path: Path) -> Path:
        card, stages = self.body, self.body["stages"]
        _digest(stages["tokenizer"])
        stages["data"]["identity"]["inputs"]["tokenizer"] = stages["tokenizer"]["digest"]
        _digest(stages["data"])
        for stage in ("pretrain", "evaluate"):
            stages[stage]["identity"]["inputs"] |= {name: stages[name]["digest"] for name in ("tokenizer", "data")}
        card["run_id"] = hashlib.sha256(json.dumps(stages["pretrain"]["identity"], sort_keys=True).encode()).hexdigest()[:12]
        for number, row in enumerate(self.rows):
            row["row"] = number
            row.pop("hash", None), row.pop("prev", None)
            if row["kind"] == "open":
                row["run_id"] = card["run_id"]
        lines = ledger_lines(self.rows)
        head = json.loads(lines.splitlines()[-1])["hash"]
        card["ledger"] = {"rows": len(self.rows), "head": head, "sha256": hashlib.sha256(lines).hexdigest(),
                          "packed": pack(self.rows)}
        card["metrics"]["packed"] = pack(self.metrics)
        files = stages["pretrain"]["files"]
        for name, content in (("ledger.jsonl", lines), ("config.json", json.dumps(card["config"], indent=1).encode()),
                              ("ledger.head", json.dumps({"row": len(self.rows) - 1, "hash": head}).encode())):
            files[name] = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
        _digest(stages["pretrain"])
        stages["evaluate"]["identity"]["inputs"]["pretrain"] = stages["pretrain"]["digest"]
        scores = (json.dumps(card["scores"], indent=1, ensure_ascii=False) + "\n").encode()
        stages["evaluate"]["files"]["scores.json"] = {"bytes": len(scores), "xxh3_128": xxhash.xxh3_128(scores).hexdigest()}
        _digest(stages["evaluate"])
        write_card(path, card)
        return path


def _digest(record: dict) -> None:
    record["digest"] = hashlib.sha256(json.dumps(record["files"], sort_keys=True).encode()).hexdigest()
