"""Checkpoints: whole or absent, every flipped byte found, the newest good one wins."""

import errno
import json
import os
import random
import signal
import sys
import time

import pytest
import torch

from cram import checkpoint
from cram.errors import CramError
from tests.cram import forked

SHAPE = {"layers": 1, "window": None, "rope_base": 10000.0}


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


def full_while(monkeypatch, folder, checkpoints):
    """torch.save fails as on a full disk as long as ``folder`` holds more than so many checkpoints."""
    real = torch.save

    def write(value, path):
        if len(checkpoint.list_checkpoints(folder)) > checkpoints:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)
    monkeypatch.setattr(torch, "save", write)


@pytest.mark.parametrize("damaged, goes", [([], 1), ([3], 1), ([1, 2, 3], 1), ([2, 3], 2)])
def test_on_a_full_disk_the_oldest_makes_room(tmp_path, monkeypatch, damaged, goes):
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in damaged:
        (tmp_path / f"step-0000000{step}" / "state.pt").write_bytes(b"")
    full_while(monkeypatch, tmp_path, 2)
    said = []
    checkpoint.save(tmp_path, state(4), step=4, run_id="run", keep=3, say=said.append)
    left = [int(path.name[5:]) for path in checkpoint.list_checkpoints(tmp_path)]
    assert left == [step for step in (4, 3, 2, 1) if step != goes]
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 4
    assert len(said) == 1 and f"step-0000000{goes} makes room for that of step 4" in said[0]


def test_the_newest_good_checkpoint_never_makes_room(tmp_path, monkeypatch):
    save(tmp_path, 1), save(tmp_path, 2)
    (tmp_path / "step-00000002" / "state.pt").write_bytes(b"")
    full_while(monkeypatch, tmp_path, 0)
    with pytest.raises(CramError, match="could not be written.*No space left"):
        checkpoint.save(tmp_path, state(3), step=3, run_id="run", keep=3, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 1


def test_what_has_nothing_to_do_with_the_disk_costs_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1), save(tmp_path, 2)

    def broken(*_):
        raise RuntimeError("no such device")
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(CramError, match="no such device"):
        save(tmp_path, 3)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 2


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(tmp_path):
    table = torch.nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(table.parameters())
    table(torch.ones(300)).sum().backward(), optimizer.step()
    shared = {"head": table.weight, "table": table.weight, "row": table.weight[3]}  # one storage
    many = {f"layer {number}": torch.ones(3) for number in range(300)}
    for kind, value in {"usual": {"model": table.state_dict(), "optimizers": [optimizer.state_dict()]}, "shared": shared,
                        "many": many, "none": {"step": 1}}.items():
        torch.save(value, tmp_path / kind)
        size = (tmp_path / kind).stat().st_size
        assert size <= checkpoint.state_bytes(value) <= 1.1 * size + 300 * 512 + 4096, kind


def test_the_size_is_foretold_by_a_model_without_weights(tmp_path):
    from cram.config import load
    from cram.model import Transformer
    config = load("demo", ["optimizer.type=adamw", "train.ema=0.9"])
    model = Transformer(config.model, 500, False)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {"model": model.state_dict(), "optimizers": [optimizer.state_dict()], "rng": torch.get_rng_state()}
    with torch.device("meta"):
        outline = Transformer(config.model, 500, False)
    for state, ema in ((kept, None), ({**kept, "ema": {name: value.clone() for name, value in model.named_parameters()}}, 0.9)):
        torch.save(state, tmp_path / "state.pt")
        config.train.ema = ema
        size = (tmp_path / "state.pt").stat().st_size
        assert size <= checkpoint.most_bytes(outline, config) <= 1.1 * size + 65_536


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    checkpoint.refuse_full_disk(tmp_path / "not" / "there" / "yet", 1)
    save(tmp_path, 1)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 10_000_000)
    checkpoint.refuse_full_disk(tmp_path, 10_000_000 + held)
    with pytest.raises(CramError, match=r"need 10\.\d MB.*10\.0 MB are free; make room.*keep_checkpoints=1"):
        checkpoint.refuse_full_disk(tmp_path, 10_000_001 + held)


def test_a_run_that_kept_a_moving_average_is_judged_by_it(tmp_path):
    from cram.config import load, to_dict
    from cram.model import build
    config = load("demo_gpt", ["model.width=8", "model.heads=2", "model.layers=1"])
    model = build(config.model, 30, True)
    average = {name: torch.full_like(parameter, 0.5) for name, parameter in model.named_parameters()}
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    for step, ema in ((1, None), (2, {"weights": average})):
        checkpoint.save(tmp_path / "checkpoints", {"model": model.state_dict(), "vocab_size": 30, "ema": ema,
                        "shape": SHAPE}, step=step, run_id="run", keep=2)
        loaded = checkpoint.load_model(tmp_path)
        expected = average if ema else dict(model.named_parameters())
        assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())
        assert loaded.causal and not loaded.training


def test_a_hybrid_model_comes_as_a_causal_one(tmp_path):
    from cram.config import load, to_dict
    from cram.model import build
    for kind, causal in (("masked", False), ("causal", True), ("hybrid", True)):
        config = to_dict(load("demo", ["model.width=8", "model.heads=2", "model.layers=1"]))
        config["objective"]["type"] = kind
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps(config))
        model = build(load("demo", ["model.width=8", "model.heads=2", "model.layers=1"]).model, 30, causal)
        checkpoint.save(tmp_path / kind / "checkpoints", {"model": model.state_dict(), "vocab_size": 30, "shape": SHAPE},
                        step=1, run_id="run", keep=1)
        assert checkpoint.load_model(tmp_path / kind).causal is causal


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
        child = forked.Popen([sys.executable, "-c", SAVER, tmp_path], stdout=forked.PIPE, text=True)
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
    for step in (1, 7):
        (tmp_path / f".step-0000000{step}.tmp").mkdir()
        (tmp_path / f".step-0000000{step}.tmp" / "state.pt").write_bytes(b"half")
    checkpoint.save(tmp_path, state(9), step=1, run_id="run", keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 9


def test_newest_means_the_highest_number_whatever_the_digits(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert checkpoint.load_newest(tmp_path, "run", print)["step"] == 100_000_000
