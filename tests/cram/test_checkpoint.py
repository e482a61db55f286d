"""Checkpoints: whole or absent, every flipped byte found, the newest good one wins."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from cram import checkpoint
from cram.errors import CramError


def state(value):
    return {"model": {"w": torch.full((50, 50), float(value))}, "step": value, "rng": torch.get_rng_state()}


def save(folder, step, keep=3):
    return checkpoint.save(folder, state(step), step=step, run_id="run", keep=keep)


def test_round_trip_and_rotation(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000005", "step-00000004"]
    loaded = checkpoint.load_newest(tmp_path, "run", print)
    assert loaded["step"] == 5 and torch.equal(loaded["model"]["w"], state(5)["model"]["w"])
    assert checkpoint.load_newest(tmp_path / "nowhere", "run", print) is None


def test_any_flipped_byte_is_found(tmp_path):
    path = save(tmp_path, 7)
    rng = random.Random(0)
    for name in ("state.pt", "manifest.json"):
        content = (path / name).read_bytes()
        positions = range(len(content)) if name == "manifest.json" else rng.sample(range(len(content)), 200)
        for position in positions:
            (path / name).write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1:])
            assert checkpoint.damage(path), (name, position)
        (path / name).write_bytes(content)
    assert checkpoint.damage(path) is None


@pytest.mark.parametrize("harm", ["truncate", "flip", "no state", "no manifest", "empty"])
def test_damage_is_named_and_the_one_before_is_used(tmp_path, harm):
    save(tmp_path, 1), save(tmp_path, 2)
    newest = tmp_path / "step-00000002"
    content = (newest / "state.pt").read_bytes()
    if harm == "truncate":
        (newest / "state.pt").write_bytes(content[:-100])
    elif harm == "flip":
        (newest / "state.pt").write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    elif harm == "empty":
        (newest / "state.pt").write_bytes(b"")
    else:
        (newest / ("state.pt" if harm == "no state" else "manifest.json")).unlink()
    said = []
    assert checkpoint.load_newest(tmp_path, "run", said.append)["step"] == 1
    assert "step-00000002 is damaged" in said[0] and "falling back" in said[0]
    assert (tmp_path / "step-00000002.corrupt").is_dir()
    assert checkpoint.load_newest(tmp_path, "run", said.append)["step"] == 1 and len(said) == 1


def test_a_foreign_checkpoint_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CramError, match="belongs to run run, not to other"):
        checkpoint.load_newest(tmp_path, "other", print)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "owned"),)
    path = tmp_path / "step-00000001"
    checkpoint.save(tmp_path, {"x": 1}, step=1, run_id="run", keep=1)
    torch.save({"x": Evil()}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(bytes=(path / "state.pt").stat().st_size, xxh3_128=checkpoint.file_hash(path / "state.pt"))
    manifest["self"] = checkpoint.manifest_hash(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpoint.load_newest(tmp_path, "run", print)
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_says_so_and_keeps_what_is_there(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CramError, match="could not be written.*MB are free"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 1


SAVER = """
import sys, torch
from pathlib import Path
from cram import checkpoint
for step in range(1, 10000):
    checkpoint.save(Path(sys.argv[1]), {"w": torch.full((400, 400), float(step)), "step": step}, step=step, run_id="r", keep=2)
    print(step, flush=True)
"""


def test_kill_9_while_saving_leaves_good_checkpoints(tmp_path):
    rng = random.Random(0)
    for attempt in range(3):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            last = int(child.stdout.readline())
        time.sleep(rng.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        last = int(rest[-1]) if rest else last
        said = []
        loaded = checkpoint.load_newest(tmp_path, "r", said.append)
        assert not said and loaded["step"] >= last and (loaded["w"] == loaded["step"]).all()


@pytest.mark.parametrize("key, value, message", [("step", 1, "step 1"), ("format", 99, "format 99, this version reads"),
                                                 ("bytes", 1, "1 were written")])
def test_a_manifest_that_does_not_fit_is_damage(tmp_path, key, value, message):
    path = save(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    assert message in checkpoint.damage(path)


def test_a_step_may_be_saved_again_and_a_leftover_is_in_nobodys_way(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000001.tmp").mkdir()
    (tmp_path / ".step-00000001.tmp" / "state.pt").write_bytes(b"half")
    checkpoint.save(tmp_path, state(9), step=1, run_id="run", keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 9


def test_newest_means_the_highest_number_whatever_the_digits(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 100_000_000
