"""Real little runs for the league, and a forger who signs everything again."""

import copy
import functools
import hashlib
import json
import random
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import xxhash

from cram.errors import CramError
from cram.insight.league.card import ledger_lines, read_card, write_card
from cram.insight.league.checks import contradictions
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
    """A folder of runs of 80 steps on one text: ``steps``, ``causal``, ``other`` and ``clock`` (other seeds)."""
    from cram.bench.runs import bring

    root = Path(tempfile.mkdtemp(prefix="cram-league-tests-"))
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "." for _ in range(400)]
    (root / "corpus.jsonl").write_text("".join('{"text": "%s"}\n' % text for text in documents))
    common = [*SMALL, f"data.files=[{root}/corpus.jsonl]", f"out={root}"]
    for name, more in (("steps", ["seed=0"]), ("other", ["seed=1"]), ("clock", ["seed=2"]), ("causal", [])):
        kept = [each for each in common if name != "causal" or each != "demo"]
        bring([*(["demo_gpt"] if name == "causal" else []), *kept, f"name={name}", "budget=80 steps", *more], "evaluate")
    return root


@functools.cache
def body(name: str, author: str = "Ada") -> dict:
    """The card of a run, unsigned; of ``clock``, as if its budget had been eight seconds."""
    made = make_card(runs() / name, author)
    if name == "clock":
        write_card(runs() / "real.card.json", made)
        forged = Forgery.of(made, read_card(runs() / "real.card.json"))
        on_a_clock(forged)
        made = json.loads(forged.write(runs() / "clock.card.json").read_text())
    return made


def on_a_clock(forged: "Forgery") -> None:
    """The same training on a machine with nothing else to do: 0.2 s to set up, 0.09 s a step, a heartbeat each 0.25 s. (A real
    clock, on a busy machine, makes another run of every test.)"""
    start, opened = datetime.fromisoformat(forged.rows[0]["at"]), forged.rows[0]
    per_token = next(row["flops_per_token"] for row in forged.metrics if row["kind"] == "plan")

    def row(kind: str, seconds: float, **more) -> dict:
        steps = min(max(int((seconds - 0.2) / 0.09), 0), 80)
        account = dict.fromkeys(opened["account"], 0.0) | {"setup": min(seconds, 0.2), "steps": round(max(seconds - 0.2, 0), 6)}
        return {"kind": kind, "at": (start + timedelta(seconds=seconds)).isoformat(timespec="milliseconds"),
                "seconds": round(sum(account.values()), 6), "account": account, "steps": steps, "tokens": 512 * steps,
                "flops": 512 * steps * per_token, "energy_joules": None, **more}

    asked = {name: opened[name] for name in ("budget", "run_id", "world_size", "heartbeat", "pid", "host")} | {"budget": "8s"}
    forged.rows = [row("open", 0.0, **asked), row("resume", 0.05, step=0, lost_since_checkpoint=0.0),
                   row("checkpoint", 0.1, step=0), *(row("heartbeat", 0.25 * beat) for beat in range(1, 30)),
                   row("checkpoint", 7.45, step=80), row("close", 7.5, reason="finished")]
    for each in forged.metrics:
        if "spent" in each:
            each["spent"] = 7.5 if each["kind"] == "end" else 0.201 + 0.09 * each["step"]
        each["time"] = start.timestamp() + each.get("spent", 0.2)
        if each["kind"] == "train":
            each["tokens_per_second"] = 512 / 0.09
    forged.set("budget", "8s")
    forged.body["budget"] = "8s"
    forged.body["made"] = (start + timedelta(seconds=120)).isoformat(timespec="seconds")


class Forgery:
    """A card taken apart: change ``rows``, ``metrics``, ``body``, then ``write``: all hashes are made anew."""

    def __init__(self, name: str):
        card = read_card(self.honest(name))
        self.body, self.rows, self.metrics = copy.deepcopy((body(name), card.ledger.rows, card.metrics))

    @classmethod
    def of(cls, made: dict, card) -> "Forgery":
        forged = cls.__new__(cls)
        forged.body, forged.rows, forged.metrics = copy.deepcopy((made, card.ledger.rows, card.metrics))
        return forged

    @staticmethod
    def honest(name: str) -> Path:
        """The card of a run as it is."""
        path = runs() / f"{name}.honest.card.json"
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


def reasons(path) -> str:
    """All that speaks against a card, as the league says it."""
    try:
        return "; ".join(contradictions(read_card(path)))
    except CramError as error:
        return str(error)


def shift(stamp: str, seconds: float) -> str:
    return (datetime.fromisoformat(stamp) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def scale(forged: Forgery, factor: float) -> None:
    """All seconds of ledger and metrics."""
    for row in forged.rows:
        row["account"] = {name: round(value * factor, 6) for name, value in row["account"].items()}
        row["seconds"] = round(sum(row["account"].values()), 6)
    for row in forged.metrics:
        if "spent" in row:
            row["spent"] *= factor


def in_two_sessions(forged: Forgery) -> Forgery:
    """As if the run had been interrupted after a second and a half and gone on a minute later, losing nothing."""
    cut = next(number for number, row in enumerate(forged.rows) if row["seconds"] > 1.5)
    before, opened = forged.rows[cut], forged.rows[0]
    same = {name: before[name] for name in ("at", "seconds", "account", "steps", "tokens", "flops", "energy_joules")}
    between = [{**same, "kind": "checkpoint", "step": before["steps"]}, {**same, "kind": "close", "reason": "interrupted"},
               {**opened, **same, "at": shift(same["at"], 60)},
               {**same, "kind": "resume", "step": before["steps"], "lost_since_checkpoint": 0.0, "at": shift(same["at"], 60)}]
    for row in forged.rows[cut + 1:]:
        row["at"] = shift(row["at"], 60)
    for row in forged.metrics:
        row["time"] += 60 if row.get("spent", 0) > before["seconds"] else 0
    forged.rows[cut + 1:cut + 1] = between
    forged.cut = cut
    forged.body["made"] = shift(forged.body["made"], 60)
    return forged
