"""``scores.json`` as a table, for the terminal and the report. No torch here."""

from __future__ import annotations

COLUMNS = {"loss": "nats per token", "accuracy": "accuracy", "bits_per_byte": "bits per byte",
           "masked_loss": "masked: nats", "masked_accuracy": "masked: right"}


def score_table(scores: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the model, then the baselines on the same text; only columns that apply."""
    rows = [("model", scores["held_out"]), *scores["baselines"].items()]
    used = [name for name in COLUMNS if any(row.get(name) is not None for _, row in rows)]
    cells = [[title, *("" if row.get(name) is None else f"{row[name]:.4f}" for name in used)] for title, row in rows]
    return ["held-out text", *(COLUMNS[name] for name in used)], cells


def gain(scores: dict) -> str:
    """How the loss stands to the unigram baseline, in words."""
    share = scores["gain_over_unigram"]
    return f"loss {100 * abs(share):.1f}% {'below' if share >= 0 else 'above'} unigram"


def score_remarks(scores: dict) -> list[str]:
    """What the table does not show: gain over unigram, how much text, minimal pairs."""
    held_out, pairs = scores["held_out"], scores["minimal_pairs"]
    counted = f"{held_out['predicted']:,} tokens predicted in {held_out['documents']:,} held-out documents; {gain(scores)}"
    if "skipped" in pairs:
        return [counted, f"minimal pairs: skipped, {pairs['skipped']}"]
    return [counted, f"minimal pairs (BLiMP): {100 * pairs['accuracy']:.1f}% of {pairs['pairs']:,} right "
                     f"(95% interval {100 * pairs['low']:.1f} to {100 * pairs['high']:.1f}; chance is 50)"]


def score_lines(scores: dict) -> list[str]:
    """Plain text, one line a row."""
    from cram.evaluate.benchmark_page import benchmark_lines, remarks

    header, rows = score_table(scores)
    benchmarks = [*benchmark_lines(scores["benchmarks"]), *remarks(scores["benchmarks"])] if scores.get("benchmarks") else []
    return ["".join(f"{cell:<14}" if i == 0 else f"{cell:>16}" for i, cell in enumerate(row)).rstrip()
            for row in [header, *rows]] + score_remarks(scores) + benchmarks
