"""``cram bench kernels``: compile every shipped launch of the attention kernels for cards that are not here.

Needs triton, no card; about two minutes of one core. ``--check`` compiles nothing: it compares what the report was
made from with what is here, and names what changed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import time
import tokenize
from pathlib import Path
from typing import NamedTuple, Optional

import cram._kernels as package
from cram._kernels.ahead import CARDS, Compiled, compile_ahead
from cram._kernels.launch import HEAD_DIMS, Launch, key, table
from cram._kernels.tune import DIRECTIONS, dtype
from cram.errors import CramError
from data_prep.files import replace_durably

SOURCES = ("ahead.py", "attention_tiles.py", "attention_triton.py")
BOTH = ("sm_80", "sm_90")  # compiled with and without norm and rotation; the others with, which is the heavier
CARD_NAMES = {"sm_75": "T4, RTX 20", "sm_80": "A100", "sm_86": "RTX 30, A10", "sm_89": "RTX 40, L4", "sm_90": "H100, H200",
              "sm_100": "B200"}
MATRIX = {"sm_75": "FFMA only", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
INTRODUCTION = """# What the compiler makes of the attention kernels

Nothing here was timed. The kernels of `kernels/attention_triton.py` were compiled ahead of time, with the launches of
`kernels/launch_table.json`, for cards that need not be here, and the machine code was read (`kernels/ahead.py`). What can be
known without a card: whether a kernel can start at all, whether it uses the tensor cores, and whether its numbers stay in
registers. How fast it is only a card can say.

| column | meaning |
|---|---|
| kernel | `forward` makes the output, `dq` the gradient of the queries, `dkv` those of keys and values |
| in | `norm, rotation`: QK-norm and rotary positions are applied as queries and keys are loaded; `raw`: they were before |
| tile | queries x keys that a program computes at a time |
| warps, stages | groups of 32 threads in a program; stages of the software pipeline: blocks being loaded ahead, plus one |
| registers | of a thread. A multiprocessor has 65,536, a thread at most 255 |
| shared | KiB of on-chip memory of a program. Above the card's limit it would compile but never start |
| stack | bytes of a thread that did not fit its registers and go through memory ("spills"). 0 is the aim |
| in loop | loads and stores of such bytes inside the loops over blocks, where they cost most. 0 is the aim |
| matrix | instructions for the tensor cores in the program's text: {names} |
| instructions | that a thread issues for one block, mean of the loop over whole blocks and the one over edges (with mask) |
| programs | that fit on a multiprocessor at once, by registers, shared memory and warps: one works while another waits |
"""
SM_75 = ("Since its release 3.3 Triton makes tensor-core code from sm_80 on only, so on these cards every product is made of "
         "FFMA, ordinary multiply-adds: correct and slow. In float16, since they have no bfloat16.")
SM_100 = "A result lies in tensor memory, which has 512 columns and limits the number of programs, too."


class Configuration(NamedTuple):
    """One kernel to compile. rules: the rows of the table it serves, such as 'full, causal'."""

    architecture: str
    head_dim: int
    direction: str
    rules: str
    launch: Launch
    fused: bool

    def compile(self) -> Compiled:
        return compile_ahead(self.direction, self.architecture, self.head_dim, self.launch, dtype=dtype(self.architecture),
                             norm=self.fused, rope=self.fused)


def configurations() -> list[Configuration]:
    """Every shipped launch once, though the table may name it twice: causal or not is no matter of the machine code."""
    found = []
    for architecture in CARDS:
        for head_dim in HEAD_DIMS:
            for direction in DIRECTIONS:
                rules: dict[Launch, list[str]] = {}
                for causal in (False, True):
                    launch = table()[key(architecture, head_dim, causal, direction)]
                    rules.setdefault(launch, []).append("causal" if causal else "full")
                found += [Configuration(architecture, head_dim, direction, ", ".join(names), launch, fused)
                          for launch, names in rules.items()
                          for fused in ((True, False) if architecture in BOTH else (True,))]
    return found


def line(one: Configuration, made: Compiled) -> str:
    """The row of the report."""
    launch = one.launch
    cells = (one.direction, one.head_dim, one.rules, "norm, rotation" if one.fused else "raw",
             f"{launch.block_m} x {launch.block_n}", launch.warps, launch.stages, made.registers, f"{made.shared / 1024:.1f}",
             made.stack, made.loop_spills, made.matrix(one.architecture), f"{made.loop:.0f}",
             made.programs(one.architecture, launch.warps))
    return "| " + " | ".join(map(str, cells)) + " |"


COLUMNS = ("kernel", "head dim", "for", "in", "tile", "warps", "stages", "registers", "shared", "stack", "in loop", "matrix",
           "instructions", "programs")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def made_from() -> dict[str, str]:
    """What the report depends on: hashes of code (comments and docstrings apart) and of the launches; triton's version."""
    folder = Path(package.__file__).parent
    parts = {f"kernels/{name}": _code(folder / name) for name in SOURCES}
    parts["kernels/launch_table.json"] = _hash(json.dumps(table(), sort_keys=True))
    return parts | {"triton": _triton() or "not installed"}


def _code(path: Path) -> str:
    """Hash of a module's lines without docstrings and comments: it stays when only prose changed."""
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            lines[node.body[0].lineno - 1:node.body[0].end_lineno] = [""] * (node.body[0].end_lineno - node.body[0].lineno + 1)
    for token in tokenize.generate_tokens(iter([line + "\n" for line in lines]).__next__):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][:token.start[1]]
    return _hash("\n".join(line.rstrip() for line in lines if line.strip()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _triton() -> Optional[str]:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def changes(report: str) -> list[str]:
    """What differs from what ``report`` was made from, in words; empty when it is current."""
    then = dict(re.findall(r"^\| made from `([\w./]+)` \| `([\w.+]+)` \|$", report, flags=re.M))
    return [f"{name}: {then.get(name, 'absent')} -> {now}" for name, now in made_from().items() if now != then.get(name)]


def write(path: Path) -> None:
    """Compile everything and write the report. CramError without triton."""
    if _triton() is None:
        raise CramError("cram bench kernels needs the package triton; it exists for Linux and comes with torch's CUDA builds")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise CramError("cram bench kernels compiles, but TRITON_INTERPRET=1 asks for the interpreter; unset it")
    started, rows = time.monotonic(), {architecture: [] for architecture in CARDS}
    wanted = configurations()
    for done, one in enumerate(wanted, 1):
        rows[one.architecture].append(line(one, one.compile()))
        if done % 10 == 0 or done == len(wanted):
            print(f"{done} of {len(wanted)} compiled, {time.monotonic() - started:.0f} s", flush=True)
    names = ", ".join(f"{MATRIX.get(name, 'HMMA')} on {name}" for name in ("sm_80", "sm_90", "sm_100"))
    text = [INTRODUCTION.format(names=names)]
    for architecture in ("sm_90", "sm_80", "sm_86", "sm_89", "sm_100", "sm_75"):
        card = CARDS[architecture]
        note = {"sm_75": SM_75, "sm_100": SM_100}.get(architecture)
        text += [f"## {architecture} ({CARD_NAMES[architecture]})",
                 f"A program may use {card.shared_program / 1024:g} KiB of shared memory; a multiprocessor holds "
                 f"{card.shared / 1024:g} KiB, {card.warps} warps.{' ' + note if note else ''}",
                 "\n".join([HEADER, *rows[architecture]])]
    text += ["## Made from", "`cram bench kernels` wrote this; `cram bench kernels --check` says whether it is current. "
             "Hashes of code leave out comments and docstrings.",
             "\n".join(["| what | hash or version |", "|---|---|",
                        *(f"| made from `{name}` | `{value}` |" for name, value in made_from().items())])]
    replace_durably(path, ("\n\n".join(text) + "\n").encode())


def main(out: Path, check: bool) -> int:
    """Write ``kernels.md`` into ``out`` (into reports/, when out is its folder of measurements, reports/bench), or check it.

    Returns 0, or 1 when a check finds that the report is not current.
    """
    path = (out.parent if out.name == "bench" else out) / "kernels.md"
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        print(f"kernels: {path}")
        return 0
    if not path.is_file():
        raise CramError(f"{path}: no report there; 'cram bench kernels' writes it")
    if found := changes(path.read_text()):
        print(f"{path} is not current; 'cram bench kernels' writes it anew. Changed:")
        print("\n".join(f"  {one}" for one in found))
        return 1
    print(f"{path} is current")
    return 0
