"""cram bench techniques: each switch has a row, each row its code and test; ratios are of the right runs, memory is exact."""

import json

import pytest
import torch

from cram.bench import defaults, techniques
from cram.bench.techniques import peak_bytes, speed
from cram.bench.techniques_list import BASICS, SECTIONS, TECHNIQUES, Technique
from cram.bench.techniques_page import is_test, where
from cram.cli import main
from cram.config import KEYS, load
from cram.errors import CramError
from cram.explain import differences

NAMED = {"ids": lambda each: each.name.replace(" ", "-") if isinstance(each, Technique) else None}


# ---- the table


def test_every_key_is_a_technique_or_said_to_be_none():
    keys = {key for key in KEYS if key.partition(".")[0] in SECTIONS}
    rows = set().union(*(each.keys for each in TECHNIQUES))
    weighed = {key for switch in defaults.SWITCHES for key in switch.keys}
    assert keys - rows - weighed - set(BASICS) == set() and set(BASICS) <= keys
    assert not rows & set(BASICS)


def test_names_are_distinct():
    assert len({each.name for each in TECHNIQUES}) == len(TECHNIQUES)


@pytest.mark.parametrize("technique", TECHNIQUES, **NAMED)
def test_code_and_test_are_there(technique, root):
    path, _, lines = where(technique.code).partition(":")
    first, last = map(int, lines.split("-"))
    source, name = (root / path).read_text().splitlines(), technique.code.rpartition(":")[2].rpartition(".")[2]
    assert any(f"{kind} {name}" in line for kind in ("def", "class") for line in source[first - 1:last])
    assert is_test(technique.test), technique.test


@pytest.mark.parametrize("technique", [each for each in TECHNIQUES if "parallel" not in each.name], **NAMED)
def test_settings_can_be_loaded_and_change_something(technique, tmp_path):
    (tmp_path / "ledger.jsonl").touch()
    base = [*techniques.BASE[1:], "budget=14 steps", *[f"distill.teacher={tmp_path}"] * technique.teacher]
    plain, own = (load("demo", [*base, *technique.against, *settings]) for settings in ((), technique.settings))
    changed = {key for key, *_ in differences(plain, own)}
    assert changed == technique.keys - {"distill.teacher"}, "no setting repeats what is there anyhow"


def test_what_is_not_there_is_named():
    with pytest.raises(CramError, match="cram.ema:Emma, named in the table of techniques, is not there"):
        where("cram.ema:Emma")
    assert where("cram.budget:Budget.parse").startswith("cram/budget.py:")
    assert not is_test("tests/cram/test_budget.py::test_x") and not is_test("tests/cram/test_schedule.py::test_shapes_at")
    assert is_test("tests/cram/test_schedule.py::test_shapes_at_known_points")


# ---- measuring


def test_memory_is_what_is_alive_at_a_time():
    kept = []

    def work():
        kept.append(torch.ones(1000, dtype=torch.float64))
        for _ in range(5):
            torch.ones(4000, dtype=torch.float64)            # freed each time
        kept.append(torch.ones(2000, dtype=torch.float64))

    assert peak_bytes(work) == peak_bytes(work) == 8 * 5000
    assert peak_bytes(kept.clear) == 0, "what was there before does not count"


class Links:
    def __init__(self, folder, steps):
        (folder / "pretrain").mkdir()
        self.links = folder
        (folder / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(
            {"kind": "train", "step": number, "batch_tokens": tokens, "tokens_per_second": tokens / seconds}) + "\n"
            for number, (tokens, seconds) in enumerate(steps, start=1)))


def test_speed_sees_plateaus_but_neither_the_start_nor_what_came_between(tmp_path):
    steps = [(100, 60.0)] * 2 + [(100, 1.0)] * 7 + [(100, 90.0)] + [(300, 2.0)] * 8
    assert speed(Links(tmp_path, steps)) == pytest.approx((8 * 100 + 8 * 300) / (8 * 1.0 + 8 * 2.0))


def test_ratios_are_to_the_plain_run_of_the_same_settings():
    rows = techniques.rows(
        [Technique("a", ("x=1",), "", "", "", ""), Technique("b", ("y=1",), "", "", "", "", ("z=1",)),
         Technique("c", ("w=1",), "", "", "", "", unmeasured="needs a card"),
         Technique("d", ("v=1",), "", "", "", "", teacher=True)],
        {((), False): {"speeds": [10, 20, 90], "peak": 2**20, "loss": 3.0},
         (("z=1",), False): {"speeds": [40], "peak": 2**22, "loss": 4.0},
         (("x=1",), False): {"speeds": [30, 10, 40], "peak": 2**19, "loss": 3.5},
         (("z=1", "y=1"), False): {"speeds": [20], "peak": 2**22, "loss": 3.0},
         (("v=1",), True): {"speeds": [], "error": "no room"}})
    rows = {row["name"]: row for row in rows}
    assert list(rows) == ["plain", "plain z=1", "a", "b", "c", "d"]
    assert (rows["a"]["speed"], rows["a"]["memory"], rows["a"]["loss_difference"]) == (1.5, 0.5, 0.5)
    assert (rows["b"]["speed"], rows["b"]["memory"], rows["b"]["loss_difference"]) == (0.5, 1.0, -1.0)
    assert rows["c"]["remark"] == "needs a card" and rows["d"]["error"] == "no room" and "speed" not in rows["d"]


def test_no_run_is_made_twice(monkeypatch, tmp_path):
    """A run made before is found again, and would tell nothing of memory."""
    (tmp_path / "ledger.jsonl").touch()
    monkeypatch.setattr(techniques, "bring", lambda settings, stage: None)
    monkeypatch.setattr(techniques, "peak_bytes", lambda work: 2**20)
    made = []

    def once(found, settings, teacher_steps, first):
        made.append(load([settings[0]], [f"distill.teacher={tmp_path}" if each.startswith("distill.teacher=") else each
                                         for each in settings[1:] if not each.startswith("name=")]))
        found |= {"speeds": [1.0], "loss": 1.0}

    monkeypatch.setattr(techniques, "_once", once)
    [rows] = techniques.measure((), 1, "cpu", False, lambda line: None)
    assert all("speed" in row for row in rows if "remark" not in row)
    assert not any(each == other for number, each in enumerate(made) for other in made[:number])


@pytest.mark.slow
def test_the_whole_command_and_its_page(tmp_path, cram):
    assert main(["bench", "techniques", "--quick", "--out", str(tmp_path / "bench")]) == 0
    path, page = tmp_path / "bench" / "techniques_cpu.json", tmp_path / "techniques.md"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {"plain", "plain objective.type=causal", *techniques.QUICK_NAMES}
    assert not any("error" in row for row in rows.values()) and rows["8-bit matrix products"]["remark"].endswith("needs a card")
    assert rows["squared ReLU"]["loss"] != rows["plain"]["loss"]
    assert rows["squared ReLU"]["memory"] < 1 == rows["plain"]["memory"]
    written = page.read_text()
    assert all(f"| {each.name} |" in written for each in TECHNIQUES) and "not part of this measurement" in written
    page.unlink()
    assert cram("bench", "render", path).code == 0 and page.read_text() == written
