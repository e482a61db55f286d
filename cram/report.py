"""The report stage: one short page about a run, as Markdown and as self-contained HTML.

Every number comes from a file of the run: ``metrics.jsonl``, the ledger, the manifests, ``scores.json``.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from cram import __version__
from cram.audit import Summary, read_ledger
from cram.budget import Budget
from cram.drawing import INK
from cram.errors import CramError
from cram.evaluate.benchmark_page import benchmark_table, draw, remarks, scored
from cram.evaluate.table import gain, score_remarks, score_table
from cram.explain import differences, explain, show
from cram.ledger import CATEGORIES
from data_prep.files import replace_durably
from cram.report_figures import draw_account, draw_curves, draw_pace, draw_tokens
from cram.report_page import to_html, to_markdown
from cram.schema import Config
from cram.telemetry import read_metrics

MOST_SAMPLES = 6  # of those taken on the way


def write_report(config: Config, stages: Mapping[str, Path], out: Path, say: Callable[[str], None]) -> None:
    """Write ``report.md``, ``report.html``, their figures as SVG, and ``config.yaml`` into ``out``.

    stages: folders of text, tokenizer, data, pretrain, evaluate and quantize. Raises CramError when a file of the run is
    missing or damaged; the ledger is verified.
    """
    text, tokenizer, data = (_read(stages[name] / "manifest.json") for name in ("text", "tokenizer", "data"))
    scores, samples = (_read(stages["evaluate"] / name) for name in ("scores.json", "samples.json"))
    quantized, pretrain_dir = _read(stages["quantize"] / "quantize.json"), stages["pretrain"]
    ledger, rows = read_ledger(pretrain_dir / "ledger.jsonl"), read_metrics(pretrain_dir / "metrics.jsonl")
    unigram = scores["baselines"]["unigram"]["loss"]
    blocks = [
        ("title", f"{config.name}: {config.objective.type} model, {ledger.budget}"),
        ("facts", _facts(config, ledger, rows, scores)),
        ("text", _summary(config, ledger, rows, scores)),
        ("section", "Scores"), ("table", *score_table(scores)),
        *(("text", remark) for remark in score_remarks(scores)), *_phenomena(scores["minimal_pairs"]),
        *_benchmarks(scores.get("benchmarks") or {}), *_quantized(quantized),
        ("section", "Loss against budget"),
        ("figure", "curves", draw_curves(rows, unigram),
         "training and validation loss, and the learning rate, against the budget spent"),
        *_figure("tokens", draw_tokens(rows), "training and validation loss against the tokens read"),
        ("section", "What it cost"),
        ("figure", "account", draw_account(ledger.account), "shares of the charged seconds"),
        *_account(config, ledger), *_figure("pace", draw_pace(rows), "tokens per second over the seconds charged"),
        *_events(rows), ("section", "Samples"), *_samples(samples), *_learning(rows),
        ("section", "Data"), *_data(data),
        ("section", "Configuration"),
        ("text", "Keys that differ from the defaults; config.yaml beside this page has all of them, with their meanings."),
        ("table", ["key", "value"], [[key, show(value)] for key, value, _ in differences(config, Config())]),
        ("section", "Provenance"),
        ("table", ["what", "value"], _provenance(text, tokenizer, data, pretrain_dir, ledger)),
        ("section", "Do it again"), ("code", _commands(config)),
    ]
    figures = {f"{block[1]}.svg": block[2].replace(INK, "#888888") for block in blocks if block[0] == "figure"}
    files = {"config.yaml": explain(config) + "\n", **figures,
             "report.md": to_markdown(blocks), "report.html": to_html(blocks, f"cram: {config.name}")}
    for name, content in files.items():
        replace_durably(out / name, content.encode())
    say(f"report: {Path(config.out) / config.name / 'report' / 'report.html'}")


def _facts(config: Config, ledger: Summary, rows: list[dict], scores: dict) -> list[tuple[str, str, str]]:
    """The strip at the top: value, what it is, beside what."""
    plan = next((row for row in reversed(rows) if row["kind"] == "plan"), {})
    held_out, baselines, budget = scores["held_out"], scores["baselines"], Budget.parse(ledger.budget)
    speeds = [row["tokens_per_second"] for row in rows if row["kind"] == "train" and row.get("tokens_per_second")]
    if held_out.get("bits_per_byte") is not None:
        score = (f"{held_out['bits_per_byte']:.3f}", "bits per byte", f"xz -9e: {baselines['xz -9e']['bits_per_byte']:.3f}")
    else:
        score = (f"{held_out['loss']:.3f}", f"{config.objective.type} loss, nats",
                 f"unigram: {baselines['unigram']['loss']:.3f}")
    facts = [score, (f"{100 * ledger.fraction:.1f}%", "of the budget spent", f"{budget.show(ledger.spent)} of {ledger.budget}"),
             (_short(ledger.own("tokens")), "tokens read", f"{ledger.own('steps'):,} steps")]
    if speeds:
        facts.append((f"{statistics.median(speeds):,.0f}", "tokens per second", "median"))
    if plan:
        facts.append((_short(plan["parameters"]), "parameters", plan["device"]))
    facts.append((f"{100 * ledger.account['steps'] / (ledger.seconds or 1.0):.1f}%", "of the time in steps",
                  f"lost: {ledger.account['lost']:.1f} s"))
    if ledger.energy_joules is not None:
        facts.append((f"{ledger.energy_joules / 3.6e6:.3f} kWh", "energy", "of the cards"))
    return facts


def _short(number: float) -> str:
    """'3.64 M': three digits and the order."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:g}"


def _figure(name: str, svg: Optional[str], alternative: str) -> list[tuple]:
    return [("figure", name, svg, alternative)] if svg is not None else []


def _summary(config: Config, ledger: Summary, rows: list[dict], scores: dict) -> str:
    plan = next((row for row in reversed(rows) if row["kind"] == "plan"), {})
    budget, held_out = Budget.parse(ledger.budget), scores["held_out"]
    size = f"{plan['parameters'] / 1e6:.1f} million parameters on {plan['device']}, " if plan else ""
    found = (f"{held_out['bits_per_byte']:.3f} bits per byte (xz -9e: {scores['baselines']['xz -9e']['bits_per_byte']:.3f})"
             if held_out.get("bits_per_byte") is not None
             else f"{held_out['loss']:.3f} nats per token, accuracy {100 * held_out['accuracy']:.1f}%")
    return (f"{size}{budget.show(ledger.spent)} of {ledger.budget} spent ({100 * ledger.fraction:.1f}%), "
            f"{ledger.own('steps'):,} steps, {ledger.own('tokens'):,} tokens"
            f"{', the teacher paid for' if ledger.teacher else ''}. On held-out text: {found}; "
            f"{gain(scores)}.")


def _phenomena(pairs: dict) -> list[tuple]:
    if "skipped" in pairs:
        return []
    rows = [[name, f"{100 * row['accuracy']:.0f}%", f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
             f"{row['pairs']:,}"] for name, row in pairs["phenomena"].items()]
    return [("details", "by phenomenon", [("table", ["phenomenon", "right", "95% interval", "pairs"], rows)])]


def _benchmarks(results: dict) -> list[tuple]:
    if not scored(results):
        return [("text", remark) for remark in remarks(results)]
    return [("section", "Benchmarks"), ("table", *benchmark_table(results)),
            ("figure", "benchmarks", draw(results), "scores with their interval, chance, and what others reached"),
            *(("text", remark) for remark in remarks(results))]


def _quantized(result: dict) -> list[tuple]:
    """Fewer bits a weight: one row a scheme, the model as it was trained first."""
    if len(result["rows"]) < 2:
        return []
    from cram.after.quantize import quantize_table
    told = (f"{result['scored_tokens']:,} held-out tokens scored; GPTQ looked at {result['calibration_tokens']:,} others; "
            f"speed: {result['speed']} on {result['device']}.")
    return [("section", "Fewer bits"), ("table", *quantize_table(result)), ("text", told),
            *(("text", f"{scheme}: skipped, {reason}") for scheme, reason in result["skipped"].items())]


def _account(config: Config, ledger: Summary) -> list[tuple]:
    account = dict.fromkeys(CATEGORIES, 0.0) | ledger.account
    rows = [[name, f"{account[name]:,.1f}", f"{100 * account[name] / ledger.seconds:.1f}%"] for name in CATEGORIES]
    facts = [f"{ledger.sessions} session{'s' * (ledger.sessions != 1)}", f"ended by: {ledger.reason or 'not closed'}",
             f"lost work {ledger.account['lost']:.1f} s"]
    if ledger.energy_joules is not None:
        facts.append(f"energy {ledger.energy_joules / 3.6e6:.3f} kWh")
    if config.telemetry.usd_per_hour is not None:
        facts.append(f"cost {ledger.seconds / 3600 * config.telemetry.usd_per_hour:.2f} USD")
    return [("table", ["charged to", "seconds", "share"], [*rows, ["together", f"{ledger.seconds:,.1f}", "100%"]]),
            ("text", "; ".join(facts) + "."), *_teacher(ledger)]


def _teacher(ledger: Summary) -> list[tuple]:
    """What of the budget went to the teacher, in words."""
    if (teacher := ledger.teacher) is None:
        return []
    return [("text", f"The teacher, run {teacher.run_id}, is part of this budget with its whole ledger: "
                     f"{teacher.seconds:,.1f} s, {teacher.steps:,} steps, {teacher.tokens:,} tokens, {teacher.flops:.4g} FLOPs. "
                     f"The run's own are {ledger.seconds - teacher.seconds:,.1f} s, {ledger.own('steps'):,} steps, "
                     f"{ledger.own('tokens'):,} tokens, {ledger.own('flops'):.4g} FLOPs.")]


def _events(rows: list[dict]) -> list[tuple]:
    """What should not happen every day: skipped steps, roll-backs, memory that ran out."""
    events = [[f"{row['step']:,}", row["event"], row["told"]] for row in rows if row["kind"] == "event"]
    return [("section", "Events"), ("table", ["step", "event", "what happened"], events)] if events else []


def _samples(samples: list[dict]) -> list[tuple]:
    blocks: list[tuple] = []
    for sample in samples:
        if "text" in sample:
            blocks += [("text", f"{sample['prompt']} ... (temperature {sample['temperature']:g})"), ("code", sample["text"])]
        else:
            blanks = [", ".join(f"{guess['token'].strip() or repr(guess['token'])} {100 * guess['probability']:.0f}%"
                                for guess in blank)
                      for blank in sample["blanks"]]
            blocks.append(("code", sample["sentence"] + "".join(f"\n    {blank}" for blank in blanks)))
    return blocks


def _learning(rows: list[dict]) -> list[tuple]:
    """Samples taken on the way, from the first to the last."""
    samples = [row for row in rows if row["kind"] == "sample"]
    chosen = sorted({round(i * (len(samples) - 1) / max(MOST_SAMPLES - 1, 1)) for i in range(MOST_SAMPLES)} if samples else ())
    inside = [block for number in chosen for block in (("text", f"step {samples[number]['step']:,}"),
                                                       ("code", samples[number]["text"]))]
    return [("details", f"as it learned: {len(chosen)} of {len(samples)} samples taken on the way", inside)] if inside else []


def _data(data: dict) -> list[tuple]:
    idle = [row["rule"] for row in data["funnel"] if not row.get("dropped_documents", 1) and not row.get("dropped_bytes")]
    funnel = [[row["rule"], _count(row, "documents"), _count(row, "bytes")] for row in data["funnel"] if row["rule"] not in idle]
    splits = [[name, f"{split['documents']:,}", f"{split['bytes']:,}", f"{split['tokens']:,}",
               f"{split['bytes'] / max(1, split['tokens']):.2f}"] for name, split in data["splits"].items()]
    return [("table", ["rule", "documents", "bytes"], funnel),
            *([("text", f"Nothing dropped by: {', '.join(idle)}.")] if idle else []),
            ("table", ["split", "documents", "bytes", "tokens", "bytes per token"], splits)]


def _count(row: dict, unit: str) -> str:
    number = row[unit] if unit in row else -row["dropped_" + unit]
    return f"{number:,}".replace("-", "−")


def _provenance(text: dict, tokenizer: dict, data: dict, pretrain_dir: Path, ledger: Summary) -> list[list[str]]:
    rows = [[f"source: {key}", show(value)] for key, value in text["source"].items()]
    rows.append(["tokenizer", f"{data['vocab_size']:,} tokens, sha256 {data['tokenizer_sha256']}"])
    for path in sorted(pretrain_dir.glob("checkpoints/step-*[0-9]/manifest.json"))[-1:]:
        made = _read(path)
        rows.append(["weights", f"step {made['step']:,}, xxh3-128 {made['xxh3_128']}, torch {made['torch']}"])
    if (teacher := ledger.teacher) is not None:
        rows += [["teacher: run", teacher.run_id], ["teacher: ledger head", teacher.head]]
    return [*rows, ["run", ledger.run_id], ["ledger head", ledger.head],
            ["written by", f"cram {__version__}, Python {platform.python_version()}, {platform.system()} "
                           f"{platform.machine()}"]]


def _commands(config: Config) -> str:
    folder = Path(config.out) / config.name
    page, board = (shlex.quote(str(folder / name)) for name in ("report/config.yaml", "pretrain/tensorboard"))
    return ("# from the folder where the run was started; all stages, those that are finished are skipped\n"
            f"scripts/run {page}\n\n"
            f"# verify the ledger; its head must be the one above\ncram ledger {shlex.quote(str(folder))}\n\n"
            f"# the curves\ntensorboard --logdir {board}")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CramError(f"{path}: missing; run the stage that writes it again") from error
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); run the stage that writes it again with --force") from error
