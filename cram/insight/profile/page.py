"""The record of a profile as a page and as lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from cram.drawing import INK
from cram.insight.profile.draw import draw_roofline, draw_time, numbered
from cram.insight.profile.watch import PHASES
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

SHORT = {"data": "data", "forward": "forward", "backward": "backward", "recompute": "again", "optimizer": "optimizer"}


def write(record: dict, out: Path) -> None:
    """``profile.json``, ``.md``, ``.html`` and the drawings in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    drawings = {"time": draw_time(record["modules"]), "roofline": draw_roofline(record["operations"], record["machine"])}
    blocks, title = page(record, drawings), f"{record['name']}: where a step's time goes"
    files = {"profile.json": json.dumps(record, indent=1) + "\n", "profile.md": to_markdown(blocks),
             "profile.html": to_html(blocks, title)}
    files |= {f"{name}.svg": svg.replace(INK, "#888888") for name, svg in drawings.items()}
    for name, content in files.items():
        replace_durably(out / name, content.encode())


def page(record: dict, drawings: dict[str, str]) -> list[tuple]:
    """The blocks of the page, for ``cram.report_page``."""
    machine = record["machine"]
    blocks: list[tuple] = [
        ("title", f"{record['name']}: where a step's time goes"), *(("text", line) for line in summary(record)),
        ("code", record["command"]),
        ("section", "The three largest things to improve"), *(("text", f"{number}. {each['told']}")
                                                             for number, each in enumerate(record["improvements"], start=1)),
        ("text", "A gain is the time above the roofline's bound: the most that could be won, not a promise."),
        ("section", "By module"), ("figure", "time", drawings["time"], "milliseconds of a step by module and phase"),
        ("table", *module_table(record)),
        ("text", "Each moment of a step is charged to one module, so the rows add up. What a module's operations leave of its "
                 "time is Python, autograd and launching. Bytes: inputs and outputs of each operation, views free. Kept: what "
                 "the forward pass leaves for the backward pass."),
        ("details", "Block by block", [("table", *module_table(record, "layers"))]),
        ("section", "Roofline"), ("figure", "roofline", drawings["roofline"], "achieved FLOP/s of the slowest operations "
                                  "against their FLOPs a byte, under the machine's measured limits"),
        ("text", f"Limits measured here: {machine['flops'] / 1e9:,.0f} GFLOP/s ({machine['precision']}, square matrices), "
                 f"{machine['bandwidth'] / 1e9:,.1f} GB/s from memory, {machine['cache_bandwidth'] / 1e9:,.1f} GB/s from "
                 f"cache, {1e6 * machine['call_seconds']:.2f} µs an operation on one number." + sheet(machine)),
        ("table", *operation_table(record)),
        ("text", ATTAINED),
        ("section", "FLOPs"), ("table", *flops_table(record)),
        *(("text", f"{part['part']}: {part['why']}.") for part in record["flops"] if part["why"] and (
            part["counted"] or part["formula"])),
        ("section", "Memory"), ("table", *memory_table(record)), ("text", MEMORY)]
    if record["compiled"]:
        blocks += [("section", "Under torch.compile"), ("text", f"{compiled_line(record)}. Its kernels, by their own time in "
                                                                     "torch's profiler:"), ("table", *kernel_table(record))]
    return blocks


ATTAINED = ("Attained: the time that FLOPs and bytes need at those limits, as a share of the time taken; 100% is also what the "
            "cache allowed above memory's limit. Elementwise work and reductions are drawn at an estimate of one FLOP a "
            "number, since torch's counter counts products alone. Operations are timed one by one, in steps of their own.")
MEMORY = ("Storages of tensors that operations returned; what an operation takes and gives back inside itself, and what the "
          "allocator keeps in reserve, is not in it.")


def sheet(machine: dict) -> str:
    """What the data sheet promises, if it is known."""
    if not machine["sheet_flops"]:
        return ""
    wide = f" and {machine['sheet_bandwidth'] / 1e9:,.0f} GB/s" if machine["sheet_bandwidth"] else ""
    return f" The data sheet promises {machine['sheet_flops'] / 1e12:,.0f} TFLOP/s{wide}; MFU is relative to that."


def summary(record: dict) -> list[str]:
    """What was looked at, and the whole."""
    step, setting, environment = record["step"], record["setting"], record["environment"]
    peak = "the data sheet's peak" if record["machine"]["sheet_flops"] else "the peak measured here"
    clock = " Times are what one thread computed, so what neighbours took is not in them." * (step["clock"] == "thread")
    wanted = " Modules are those of the eager model, since compiling dissolves them." if setting["compiled"] else ""
    return [f"One step of {setting['batch_tokens']:,} tokens in micro-batches of {setting['micro_tokens']:,}, rows of "
            f"{setting['row']:,}; {setting['parameters']:,} parameters, {setting['blocks']} blocks, {setting['objective']}; "
            f"attention by {setting['backend']}, {setting['precision']}; at progress {record['progress']:g}. Text: "
            f"{record['text']}.{wanted}{clock}",
            f"{step['plain_ms']:.1f} ms a step ({step['tokens_per_second']:,.0f} tokens/s), MFU {step['mfu']:.1%} of {peak}, "
            f"with all FLOPs counted {step['hardware_flops_utilisation']:.1%}. The modules add up to {step['sum_ms']:.1f} ms: "
            f"looking costs {step['looking']:+.1%}. Means over the fastest quarter of {step['steps']} "
            "steps of each kind, in turns.",
            f"{setting['device_name']} ({environment['name']}), torch {environment['torch']}, {environment['date']}.",
            *record["doubts"]]


def module_table(record: dict, key: str = "modules") -> tuple[list[str], list[list[str]]]:
    """Header and rows; a column for each phase that took time."""
    total, rows = record["step"]["sum_ms"], record[key]
    phases = [phase for phase in PHASES if any(row["ms"].get(phase) for row in rows)]
    header = ["module", *(f"{SHORT[phase]}, ms" for phase in phases), "share", "GFLOPs", "GB", "kept, MB"]

    def line(name: str, ms: dict, flops: dict, moved: dict, kept: float) -> list[str]:
        return [name, *(f"{ms.get(phase, 0):.2f}" if ms.get(phase) else "" for phase in phases),
                f"{sum(ms.values()) / total:.1%}", f"{sum(flops.values()) / 1e9:.2f}" if sum(flops.values()) else "",
                f"{sum(moved.values()) / 1e9:.3f}" if moved else "", f"{kept / 1e6:.1f}" if kept else ""]

    def whole(what: str) -> dict:
        return {phase: sum(row[what].get(phase, 0) for row in rows) for phase in phases}

    body = [line(title(row), row["ms"], row["flops"], row["bytes"], row["kept_bytes"]) for row in rows]
    return header, body + [line("sum", whole("ms"), whole("flops"), whole("bytes"), sum(row["kept_bytes"] for row in rows))]


def title(row: dict) -> str:
    return row["module"] if row.get("layer") is None else f"block {row['layer']}: {row['module']}"


def operation_table(record: dict) -> tuple[list[str], list[list[str]]]:
    """The operations that are drawn, by their numbers."""
    return ["#", "module", "operation", "phase", "ms", "FLOPs a byte", "GFLOP/s", "GB/s", "bound", "attained"], [
        [str(number), row["module"], row["kind"], SHORT[row["phase"]], f"{row['ms']:.2f}", f"{row['intensity']:.2f}",
         f"{row['flops_per_second'] / 1e9:.1f}", f"{row['bytes'] / row['ms'] / 1e6:.1f}", row["bound"],
         f"{row['attained']:.0%}"]
        for number, row in enumerate(numbered(record["operations"]), start=1)]


def flops_table(record: dict) -> tuple[list[str], list[list[str]]]:
    """Counted, by formula, needed."""
    rows = [part for part in record["flops"] if part["formula"] or part["counted"]]
    return ["GFLOPs of a step", "counted", "by formula", "needed"], [
        [part["part"], f"{part['counted'] / 1e9:.3f}", f"{part['formula'] / 1e9:.3f}",
         f"{part['needed'] / 1e9:.3f}" if part.get("needed") else ""] for part in rows]


def memory_table(record: dict) -> tuple[list[str], list[list[str]]]:
    memory = record["memory"]
    rows = [["weights", memory["weights"]], ["optimizer states", memory["optimizer"]], ["averages", memory["averages"]],
            ["kept for the backward pass", memory["kept_for_backward"]]]
    rows += [[f"peak, {phase}", size] for phase, size in memory["peak"].items()]
    rows += [["peak by the card's allocator", memory["allocator_peak"]]]
    return ["memory", "MB"], [[name, f"{size / 1e6:,.1f}"] for name, size in rows if size]


def kernel_table(record: dict) -> tuple[list[str], list[list[str]]]:
    return ["kernel", "calls", "ms"], [[row["name"][:60], str(row["calls"]), f"{row['ms']:.2f}"]
                                       for row in record["compiled"]["kernels"]]


def compiled_line(record: dict) -> str:
    ms, plain = record["compiled"]["step_ms"], record["step"]["plain_ms"]
    return f"under torch.compile {ms:.1f} ms a step, {plain / ms:.2f} times as fast as the {plain:.1f} ms of the eager model"


def lines(record: dict, layers: bool) -> list[str]:
    """For a terminal."""
    header, rows = module_table(record, "layers" if layers else "modules")
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    drawn = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in table]
    return [*summary(record), "", *drawn, "", *(f"{number}. {each['told']}" for number, each in enumerate(
        record["improvements"], start=1)), *([compiled_line(record)] if record["compiled"] else [])]
