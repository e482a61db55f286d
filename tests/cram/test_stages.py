"""The stage runner with toy stages: what runs, why, and what a crash, a second process or damage leaves behind."""

import json
import os
import signal
import sys
import textwrap

import pytest

from cram import artifacts
from cram.config import KEYS, load
from cram.errors import CramError
from cram.stages import Runner, Stage, UndeclaredKey, View, view
from tests.cram import forked


class Toy:
    """first -> second -> train (resumable) -> last; the files hold what was read from the configuration."""

    def __init__(self, folder):
        self.folder, self.calls, self.said, self.crash, self.facts = folder, [], [], None, {"file": 1}
        self.stages = (
            Stage("first", 1, keys=("seed", "data.max_bytes"), inputs=(), function=self.first, facts=lambda view: self.facts),
            Stage("second", 1, keys=("tokenizer",), inputs=("first",), function=self.second),
            Stage("train", 1, keys=("budget",), inputs=("second",), function=self.train, free=("telemetry",), resumable=True,
                  precious=True),
            Stage("last", 1, keys=("evaluate.tokens",), inputs=("first", "train"), function=self.last),
        )

    def runner(self, *overrides, stages=None):
        config = load("demo", [f"out={self.folder}", "name=toy", *overrides])
        return Runner(stages or self.stages, config, self.said.append)

    def run(self, *overrides, target=None, force=None, stages=None):
        self.calls.clear(), self.said.clear()
        self.runner(*overrides, stages=stages).run(target, force)
        return list(self.calls)

    def _write(self, name, out, text):
        self.calls.append(name)
        (out / "part").mkdir(exist_ok=True)
        (out / "part" / "a.txt").write_text(text)
        if self.crash == name:
            raise RuntimeError("power cut")
        (out / "b.txt").write_text(text)

    def first(self, config, inputs, out, key, say):
        self._write("first", out, f"{config.seed // 10}")          # seeds 0 to 9 give the same bytes
        assert config.data.max_bytes is None

    def second(self, config, inputs, out, key, say):
        self._write("second", out, (inputs["first"] / "b.txt").read_text() + str(config.tokenizer.vocab_size))

    def train(self, config, inputs, out, key, say):
        say(f"found {(out / 'part').exists()}")
        self._write("train", out, config.budget + str(key))

    def last(self, config, inputs, out, key, say):
        self._write("last", out, (inputs["train"] / "b.txt").read_text())

    def reasons(self, *overrides, **options):
        return {plan.stage.name: plan.reason for plan in self.runner(*overrides).plan(**options)}

    def link(self, name):
        return self.folder / "toy" / name


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path / "out")


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ALL = ["first", "second", "train", "last"]


def test_runs_all_then_skips_all(toy):
    assert toy.run() == ALL
    assert all(toy.link(name).is_symlink() and (toy.link(name) / "stage.json").exists() for name in ALL)
    assert not os.path.isabs(os.readlink(toy.link("first")))
    before = snapshot(toy.folder)
    assert toy.run() == [] and toy.said == [f"{name}: fresh" for name in ALL]
    assert snapshot(toy.folder) == before


def test_target_brings_only_its_inputs_up_to_date(toy):
    assert toy.run(target="second") == ["first", "second"]
    assert toy.run(target="last") == ["train", "last"]


def test_only_dependent_stages_rerun_with_the_reason(toy):
    toy.run()
    assert toy.reasons("tokenizer.vocab_size=2048") == {
        "first": "", "second": "changed: tokenizer.vocab_size 4096 -> 2048", "train": "input will be made: second",
        "last": "input will be made: train"}
    assert toy.run("tokenizer.vocab_size=2048") == ["second", "train", "last"]
    assert "second: changed: tokenizer.vocab_size 4096 -> 2048" in toy.said
    assert "train: input changed: second" in toy.said and "last: input changed: train" in toy.said
    assert toy.run() == [], "the earlier results are still there"
    assert toy.run("evaluate.tokens=400000") == ["last"] and "last: changed: evaluate.tokens 500000 -> 400000" in toy.said
    assert toy.run("evaluate.tokens=400000", "telemetry.print_every=1", "model.layers=1") == []


def test_identical_bytes_stop_the_cascade(toy):
    toy.run()
    assert toy.run("seed=1") == ["first"]
    assert toy.said[0] == "first: changed: seed 0 -> 1" and toy.said[-1] == "last: fresh"
    assert toy.run("seed=10") == ALL


def test_facts_and_versions_count(toy):
    toy.run()
    toy.facts = {"file": 2}
    assert toy.reasons()["first"] == "changed: file 1 -> 2"
    assert toy.run() == ["first"]
    newer = tuple(Stage(**{**stage.__dict__, "version": 2}) if stage.name == "last" else stage for stage in toy.stages)
    assert toy.run(stages=newer) == ["last"] and "last: changed: version of the stage 1 -> 2" in toy.said


def test_crash_leaves_the_old_result_whole_and_is_mended_by_the_next_run(toy):
    toy.run()
    target = toy.link("second").resolve()
    before = snapshot(target)
    toy.crash = "second"
    with pytest.raises(RuntimeError):
        toy.run(force="second")
    assert snapshot(target) == before and toy.link("second").resolve() == target
    with pytest.raises(RuntimeError):
        toy.run("tokenizer.vocab_size=2048")
    assert toy.link("second").resolve() == target
    assert not list((toy.folder / "artifacts").glob(".*.tmp"))
    toy.crash = None
    assert toy.run() == []
    assert toy.run("tokenizer.vocab_size=2048") == ["second", "train", "last"]


@pytest.mark.parametrize("name", ["first", "second"])
def test_crash_between_the_two_renames_is_recovered(toy, monkeypatch, name):
    toy.run()
    folder, content = toy.link(name).resolve(), snapshot(toy.link(name))
    replace = os.replace

    def cut(source, target):
        if os.fspath(source).endswith(".tmp") and os.path.isdir(source):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(artifacts.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        toy.run(force=name, target=name)
    assert not folder.exists(), "the test must hit the moment in between"
    monkeypatch.undo()
    assert toy.run(target=name) == [] and snapshot(folder) == content


def test_kill_leaves_work_that_the_next_run_clears(toy):
    toy.run()
    left = toy.folder / "artifacts" / ".second-0123456789ab.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    with artifacts.lock(toy.folder / "artifacts" / "second-0123456789ab"):
        toy.run()
        assert left.exists(), "its writer is alive"
    toy.run()
    assert not left.exists()


def test_killed_process_leaves_the_old_result_and_no_lock(tmp_path):
    """kill -9 in the middle of a stage: the result of before is still whole and shown; the next run does the work."""
    code = textwrap.dedent("""
        import sys, time
        from cram.config import load
        from cram.stages import Runner, Stage

        def work(config, inputs, out, key, say):
            (out / "a").write_text("half")
            if sys.argv[2] == "hang":
                say("working")
                time.sleep(60)
            (out / "a").write_text("whole")

        config = load("demo", [f"out={sys.argv[1]}", "seed=" + sys.argv[3]])
        Runner([Stage("only", 1, ("seed",), (), work)], config, lambda text: print(text, flush=True)).run()
    """)

    def start(mode, seed):
        return forked.Popen([sys.executable, "-c", code, tmp_path, mode, seed], stdout=forked.PIPE, text=True)

    def finish(process):
        return process.communicate()[0].splitlines()

    finish(start("pass", "0"))
    shown = tmp_path / "demo" / "only"
    first = shown.resolve()
    process = start("hang", "1")
    assert [process.stdout.readline() for _ in range(2)][1] == "working\n"
    process.kill()
    process.wait()
    assert shown.resolve() == first and (shown / "a").read_text() == "whole" and finish(start("pass", "0")) == ["only: fresh"]
    assert finish(start("pass", "1"))[0] == "only: changed: seed 0 -> 1" and (shown / "a").read_text() == "whole"
    assert shown.resolve() != first and not list((tmp_path / "artifacts").glob(".*.tmp"))


def test_damage_is_named_and_repaired(toy):
    toy.run()
    file = toy.link("first") / "part" / "a.txt"
    file.write_text("longer")
    assert toy.reasons()["first"] == "damaged: part/a.txt is 6 bytes, expected 1"
    assert toy.run() == ["first"] and toy.run() == []
    file.unlink()
    assert toy.reasons()["first"] == "damaged: part/a.txt is missing"
    assert toy.run() == ["first"]
    (toy.link("first") / "stage.json").write_text("{torn")
    assert toy.run() == ["first"]


def test_force_reruns_what_follows_and_keeps_the_old_training(toy):
    toy.run()
    assert toy.run(force="second") == ["second", "train", "last"]
    assert toy.reasons(force="train") == {"first": "", "second": "", "train": "--force", "last": "input will be made: train"}
    aside = [path for path in (toy.folder / "artifacts").iterdir() if ".replaced-" in path.name]
    assert len(aside) == 1 and (aside[0] / "b.txt").exists()
    assert any("the earlier result is kept in" in line for line in toy.said) and "found False" in toy.said
    toy.run(force="train", target="train")
    assert len([path for path in (toy.folder / "artifacts").iterdir() if ".replaced-" in path.name]) == 2


def test_interrupted_training_keeps_its_folder_and_continues(toy):
    toy.crash = "train"
    with pytest.raises(RuntimeError):
        toy.run()
    assert (toy.link("train") / "part" / "a.txt").exists(), "it can be watched while it runs"
    plans = {plan.stage.name: plan for plan in toy.runner().plan()}
    assert plans["train"].state == "interrupted" and plans["train"].folder == toy.folder / "artifacts" / os.path.basename(
        toy.link("train").resolve())
    toy.crash = None
    assert toy.run() == ["train", "last"] and "found True" in toy.said and "train: interrupted: continues" in toy.said
    assert toy.run() == []
    toy.crash = "train"
    with pytest.raises(RuntimeError):
        toy.run("budget=5m")
    assert toy.reasons("budget=7m")["train"] == "changed: budget 5m -> 7m", "compared with the unfinished run"


def test_damaged_training_is_resumed_not_redone(toy):
    toy.run()
    (toy.link("train") / "b.txt").unlink()
    assert toy.reasons()["train"] == "damaged: b.txt is missing"
    toy.run()
    assert "found True" in toy.said and toy.calls[0] == "train"


def test_planning_writes_nothing(toy):
    assert [plan.state for plan in toy.runner().plan(force="first")] == ["run"] * 4
    assert not toy.folder.exists()


def test_stage_sees_only_what_it_declared(toy):
    first = view(toy.stages[0], load("demo"))
    assert first.seed == 0 and first.data.max_bytes is None
    with pytest.raises(UndeclaredKey, match="stage 'first' reads 'data.source' without declaring it"):
        first.data.source
    with pytest.raises(UndeclaredKey):
        getattr(first, "budget", "a default does not hide it")
    with pytest.raises(AttributeError, match="no key 'data.sourze'"):
        first.data.sourze
    with pytest.raises(AttributeError, match="read-only"):
        first.seed = 3
    with pytest.raises(KeyError):
        view(Stage("x", 1, ("sead",), (), print), load("demo"))


def test_view_hands_out_copies_and_whole_configurations():
    config = load("demo")
    view(Stage("x", 1, ("data",), (), print), config).data.packages.append("changed")
    whole = view(Stage("x", 1, tuple(KEYS), (), print), config)
    assert whole == config and whole is not config and "changed" not in config.data.packages
    assert isinstance(view(Stage("x", 1, ("data",), (), print), config), View)


def test_undeclared_read_leaves_no_result(toy):
    bad = (Stage("first", 1, ("seed",), (), lambda config, *_: config.budget),)
    with pytest.raises(UndeclaredKey):
        toy.run(stages=bad)
    assert not list((toy.folder / "artifacts").glob("first-*"))


def test_two_processes_cannot_write_one_result(toy, cram):
    """A second process holds the lock: named in the error and in the plan; free again when it dies."""
    toy.run(target="first")
    folder = toy.link("first").resolve()
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from cram import artifacts
        with artifacts.lock(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """)
    other = forked.Popen([sys.executable, "-c", code, folder], stdout=forked.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        assert artifacts.writer(folder) == str(other.pid)
        with pytest.raises(CramError, match=f"process {other.pid} is writing it"):
            toy.run(force="first", target="first")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert artifacts.writer(folder) is None
    assert toy.run(force="first", target="first") == ["first"]


def test_record_holds_what_proves_the_result(toy):
    toy.run(target="second")
    record = json.loads((toy.link("second") / "stage.json").read_text())
    assert record["identity"]["config"]["tokenizer.vocab_size"] == 4096
    assert record["identity"]["inputs"]["first"] == json.loads((toy.link("first") / "stage.json").read_text())["digest"]
    assert set(record["files"]) == {"part/a.txt", "b.txt"} and record["files"]["b.txt"]["bytes"] == 5
    assert record["seconds"] >= 0 and "seconds" not in json.dumps(record["identity"])


def test_unwritable_output_and_a_folder_in_the_way(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CramError, match="cannot write there .* choose another folder with out="):
        toy.run(f"out={tmp_path}/file")
    toy.link("first").mkdir(parents=True)
    with pytest.raises(CramError, match="is in the way of a link"):
        toy.run()
