"""The attention kernels compiled for cards that are not here, and the report about it."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cram._kernels import tune
from cram._kernels.ahead import CARDS, Compiled, block_loops, compile_ahead, instructions
from cram._kernels.launch import FLOAT32, HEAD_DIMS, SAFE, Launch, key, table
from cram.bench import kernels as bench
from cram.errors import CramError

STACK = 64  # bytes a thread that may be spilled where it cannot be helped; none at head dimension 64 on sm_90
STACK_75 = 3000  # without tensor-core code every factor goes through registers: it compiles and is right, no more
ANOTHER_TRITON = 256  # the same for another compiler than the one that the launches were chosen with


def spilled(architecture, head_dim):
    """Bytes a thread may spill."""
    return STACK_75 if architecture == "sm_75" else 0 if (architecture, head_dim) == ("sm_90", 64) else STACK


def why_not():
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "the interpreter takes the place of the compiler"
    try:
        import triton.backends.nvidia  # noqa: F401
    except ImportError:
        return "needs triton, which is for Linux"
    return None


compiles = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def shipped(architecture, head_dim, direction):
    """The launches for full and causal attention; once when they are the same."""
    return sorted({table()[key(architecture, head_dim, causal, direction)] for causal in (False, True)})


def configuration(architecture, head_dim, direction, fused=True):
    """That of full attention, as the report lists it."""
    return next(one for one in bench.configurations() if one[:3] == (architecture, head_dim, direction) and one.fused == fused
                and "full" in one.rules)


@pytest.fixture(scope="module")
def report(root):
    return (root / "reports" / "kernels.md").read_text()


# ---- what the compiler makes of the shipped launches; reports/kernels.md has all of them


SAMPLE = [*(("sm_90", head_dim, direction, True) for head_dim in (64, 128) for direction in tune.DIRECTIONS),
          ("sm_90", 32, "dkv", True), ("sm_90", 64, "forward", False), ("sm_80", 64, "forward", True),
          ("sm_80", 64, "dkv", True),
          ("sm_80", 128, "dq", True), ("sm_80", 64, "dq", False), ("sm_86", 128, "forward", True), ("sm_89", 64, "dq", True),
          ("sm_100", 64, "dkv", True), ("sm_75", 32, "forward", True)]


@compiles
@pytest.mark.parametrize("architecture, head_dim, direction, fused", SAMPLE)
def test_shipped_launches_compile_to_what_is_wanted_and_reported(architecture, head_dim, direction, fused, report):
    one = configuration(architecture, head_dim, direction, fused)
    made = one.compile()
    assert made.shared <= CARDS[architecture].shared_program and made.programs(architecture, one.launch.warps) >= 1
    assert made.matrix(architecture) > 0 or architecture == "sm_75"
    if bench.made_from()["triton"] not in report:
        assert made.stack <= ANOTHER_TRITON
        return
    assert bench.line(one, made) in report.splitlines()
    assert made.stack <= spilled(architecture, head_dim)
    assert (made.spill_loads + made.spill_stores == 0) == (made.stack == 0)


@compiles
@pytest.mark.parametrize("direction", tune.DIRECTIONS)
def test_the_safe_launch_fits_the_smallest_card(direction):
    """An unknown card may have as little shared memory as any of the known ones."""
    made = compile_ahead(direction, "sm_80", 128, SAFE[direction])
    assert made.shared <= min(card.shared_program for card in CARDS.values()) and made.mma > 0


@compiles
def test_float32_compiles_too():
    made = compile_ahead("dq", "sm_80", 128, FLOAT32, dtype="fp32", softcap=True, group=4)
    assert made.shared <= CARDS["sm_86"].shared_program


@compiles
def test_a_tile_too_large_is_seen():
    """The compiler itself does not mind: it would fail at launch, and run from memory."""
    made = compile_ahead("dq", "sm_86", 128, Launch(128, 64, 4, 3), norm=False, rope=False)
    assert not made.fits("sm_86") and made.programs("sm_86", 4) == 0 < made.programs("sm_80", 4)
    assert made.stack > 1000 and made.loop_spills > 0


# ---- the report


def test_the_report_is_current(cram, root):
    result = cram("bench", "kernels", "--check", "--out", root / "reports")
    changed = [line for line in result.out.splitlines() if line.startswith("  ")]
    assert not [line for line in changed if not line.startswith("  triton:")], result.out  # another version is no fault
    assert result.code == bool(changed)


def test_the_report_holds_every_launch_and_none_breaks_the_rules(report):
    """What the sample above compiles is compared with these rows; the others are bound to them by the report's hash."""
    rows, architecture = {}, None
    for line in report.splitlines():
        if heading := re.match(r"## (sm_\d+) ", line):
            architecture = heading.group(1)
        elif architecture and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in tune.DIRECTIONS:
            rows.setdefault(architecture, []).append(cells)
    for architecture in CARDS:
        for head_dim in HEAD_DIMS:
            for direction in tune.DIRECTIONS:
                for fused in ("norm, rotation", "raw")[:2 if architecture in bench.BOTH else 1]:
                    wanted = direction, str(head_dim), fused
                    found = [cells for cells in rows[architecture] if (*cells[:2], cells[3]) == wanted]
                    launches = sorted(Launch(*map(int, cells[4].split(" x ")), int(cells[5]), int(cells[6])) for cells in found)
                    assert launches == shipped(architecture, head_dim, direction)
    for architecture, found in rows.items():
        for cells in found:
            shared, stack, matrix, programs = float(cells[8]), int(cells[9]), int(cells[11]), int(cells[13])
            assert shared <= CARDS[architecture].shared_program / 1024 and programs >= 1
            assert stack <= spilled(architecture, int(cells[1])), (architecture, cells)
            assert matrix > 0 or architecture == "sm_75"


@pytest.mark.parametrize("name", bench.SOURCES)
def test_a_changed_kernel_makes_the_report_old_and_changed_prose_does_not(name, tmp_path, monkeypatch):
    folder = Path(bench.package.__file__).parent
    for source in bench.SOURCES:
        (tmp_path / source).write_text((folder / source).read_text())
    report = "\n".join(f"| made from `{what}` | `{value}` |" for what, value in bench.made_from().items())
    monkeypatch.setattr(bench.package, "__file__", str(tmp_path / "__init__.py"))
    assert bench.changes(report) == []
    code = (tmp_path / name).read_text()
    (tmp_path / name).write_text('"""Other words.\n\nMore of them."""\n' + code.partition('"""\n\n')[2] + "\n# the end\n")
    assert bench.changes(report) == []
    (tmp_path / name).write_text(code.replace("return", "return 1 +", 1))
    assert [line.partition(":")[0] for line in bench.changes(report)] == [f"kernels/{name}"]


def test_a_changed_launch_or_compiler_is_named(monkeypatch):
    report = "\n".join(f"| made from `{what}` | `{value}` |" for what, value in bench.made_from().items())
    monkeypatch.setattr(bench, "table", lambda: {**table(), "sm_90 64 full dq": Launch(16, 16, 4, 1)})
    monkeypatch.setattr(bench, "_triton", lambda: "9.9.9")
    launches, compiler = bench.changes(report)
    assert launches.startswith("kernels/launch_table.json: ") and compiler.endswith(" -> 9.9.9")


def test_writing_compiles_each_launch_once(monkeypatch, tmp_path, capsys):
    compiled = []
    monkeypatch.setattr(bench.Configuration, "compile", lambda one: compiled.append(one) or FINE)
    monkeypatch.setattr(bench, "_triton", lambda: "3.7.1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert bench.main(tmp_path / "reports" / "bench", False) == 0
    text = (tmp_path / "reports" / "kernels.md").read_text()
    assert len(compiled) == len(set(compiled)) == len(re.findall(r"^\| (?:forward|dq|dkv) \|", text, flags=re.M))
    assert {(one.architecture, one.fused) for one in compiled} == {
        (name, fused) for name in CARDS for fused in (True, False) if fused or name in bench.BOTH}
    monkeypatch.setattr(bench.Configuration, "compile", lambda one: pytest.fail("--check compiled"))
    assert bench.main(tmp_path / "reports" / "bench", True) == 0 == bench.main(tmp_path / "reports", True)
    with pytest.raises(CramError, match="cram bench kernels"):
        bench.main(tmp_path / "elsewhere", True)
    monkeypatch.setattr(bench, "_triton", lambda: None)
    with pytest.raises(CramError, match="needs the package triton"):
        bench.main(tmp_path, False)


# ---- reading machine code


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
                                                                           /* 0x000fe40000000f00 */
        /*0010*/               @P0 LDL.LU R12, [R1] ;                      /* 0x00000000010c7983 */
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, R140, gdesc[UR16], RZ, !UPT ;
        /*0030*/              @!P3 STL [R1+0x4], R8 ;
        /*0040*/                   MUFU.EX2 R5, R6 ;
        /*0050*/          @P1      BRA 0x20 ;
        /*0060*/              @UP2 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR43], tmem[UR34], idesc[UR35], !UPT ;
        /*0070*/                   MUFU.EX2 R5, R6 ;
        /*0080*/                   MUFU.RCP R5, R6 ;
        /*0090*/             @!UP1 BRA `(.L_x_1) 0x60 ;
        /*00a0*/              @!PT HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*00b0*/                   BRA 0x10 ;
        /*00c0*/               @P0 EXIT ;
        /*00d0*/                   EXIT ;
        /*00e0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*00f0*/          @!P0     BRA 0x60 ;
        /*0100*/                   BRA 0x100 ;
"""


def test_instructions_are_read_with_and_without_a_predicate():
    code = instructions(SASS)
    assert [address for address, _, _ in code] == list(range(0, 0x110, 0x10))
    names = [name.split(".")[0] for _, name, _ in code]
    assert names == ["MOV", "LDL", "HGMMA", "STL", "MUFU", "BRA", "UTCHMMA", "MUFU", "MUFU", "BRA", "HMMA", "BRA", "EXIT",
                     "EXIT", "SYNCS", "BRA", "BRA"]


def test_loops_over_blocks_are_the_innermost_with_exponentials():
    """Not the loop over heads around them, and not a waiting loop that the compiler put behind the end."""
    first, second = block_loops(instructions(SASS))
    assert [name.split(".")[0] for name in first] == ["HGMMA", "STL", "MUFU", "BRA"]
    assert [name.split(".")[0] for name in second] == ["UTCHMMA", "MUFU", "MUFU", "BRA"]


FINE = Compiled(registers=168, stack=0, shared=40_000, tensor_memory=0, mma=10, wgmma=10, tcgen05=10, spill_loads=0,
                spill_stores=0, loop=500.0, loop_spills=0)


@pytest.mark.parametrize("architecture, warps, change, programs", [
    ("sm_90", 4, {}, 3),                          # 65,536 registers / (128 threads x 168)
    ("sm_90", 4, {"registers": 169}, 2),          # handed out in eights: 176
    ("sm_90", 8, {}, 1), ("sm_90", 8, {"registers": 128}, 2), ("sm_90", 4, {"registers": 32}, 5),  # 233,472 / 41,024
    ("sm_90", 4, {"shared": 100_000}, 2),         # 233,472 / (100,000 + 1,024)
    ("sm_90", 4, {"shared": 232_448}, 1), ("sm_90", 4, {"shared": 232_449}, 0), ("sm_86", 4, {"shared": 101_377}, 0),
    ("sm_75", 4, {"shared": 32_768}, 2),
    ("sm_86", 4, {"registers": 24, "shared": 0}, 12), ("sm_80", 4, {"registers": 24, "shared": 0}, 16),  # 48 and 64 warps
    ("sm_100", 4, {"tensor_memory": 256}, 2), ("sm_100", 4, {"tensor_memory": 512}, 1),
    ("sm_100", 4, {"tensor_memory": 513}, 0)])
def test_programs_on_a_multiprocessor(architecture, warps, change, programs):
    assert replace(FINE, **change).programs(architecture, warps) == programs


# ---- the choice without a card


def clocks(direction="forward", architecture="sm_90", head_dim=64, launch=Launch(64, 64, 4, 2), fused=True, **change):
    return tune.estimate(direction, architecture, head_dim, launch, replace(FINE, **change), fused)


def test_what_cannot_run_or_misses_the_tensor_cores_is_out():
    assert clocks() < float("inf")
    assert clocks(shared=232_449) == clocks(wgmma=0) == clocks(architecture="sm_80", mma=0) == float("inf")
    assert clocks(architecture="sm_100", tcgen05=0) == float("inf") > clocks(architecture="sm_75", mma=0)


def test_the_estimate_prefers_what_costs_less():
    assert clocks(stack=8) == clocks(stack=64) == pytest.approx(tune.SPILL * clocks())
    assert 10 * clocks(loop=2000.0) < clocks(stack=72) < float("inf")             # only where there is nothing else
    assert clocks(loop=400.0) < clocks() < clocks(registers=255)                  # fewer instructions, fewer programs
    assert clocks(launch=Launch(64, 64, 4, 3)) < clocks()                         # more loads on their way
    assert clocks(head_dim=128) > clocks() > clocks(fused=False)                  # products and loads
    assert clocks(launch=Launch(128, 64, 8, 2), registers=128) < clocks()         # the same instructions for twice the scores


def test_the_estimate_by_hand():
    """sm_90, head dimension 64, tile 64 x 64, 4 warps, 3 programs, 500 instructions a block."""
    issue, exp, matrix, load, wait = 500 / 4096, 1 / 16, 2 * 64 / 2048, (256 + 128) / 64 / 40, (500 + 500 / 2) / 4096
    total = issue + exp + matrix + load + wait
    assert wait > issue and clocks() == pytest.approx((wait + (total - wait) / 3) * (1 + (64 + 32) / 512))


@pytest.mark.parametrize("direction", tune.DIRECTIONS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_candidates_hold_at_least_their_sums_in_registers(direction, head_dim):
    launches = tune.candidates(direction, head_dim, 2)
    assert len(launches) == len(set(launches)) > 5 and Launch(64, 64, 4, 2) in launches
    for launch in launches:
        sums = {"forward": launch.block_m, "dq": launch.block_m, "dkv": 2 * launch.block_n}[direction] * head_dim
        assert sums / (32 * launch.warps) < 255 and launch.stages == 2


def test_the_search_ranks_all_tiles_and_then_the_stages_of_the_best(monkeypatch):
    """A compiler that likes few stages and large tiles."""
    def judge(task):
        launch = task[3]
        cost = launch.stages - launch.block_m * launch.block_n / 1e6
        return tune.Found(launch, float("inf") if launch.warps == 4 else cost, FINE)

    monkeypatch.setattr(tune, "judge", judge)
    found = [one.launch for one in tune.search("forward", "sm_90", 64)]
    assert found[0] == Launch(128, 128, 8, 1) and all(launch.warps == 8 for launch in found)
    assert len({launch for launch in found if launch.stages == 2}) > 5
    assert {launch.stages for launch in found} == {1, 2, 3}
    assert len([launch for launch in found if launch.stages != 2]) == 2 * tune.FINALISTS
