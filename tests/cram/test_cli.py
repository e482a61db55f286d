"""The command line: verbs, overrides, exit codes, and one line per error."""

import os
import subprocess
import sys

import pytest

from cram import artifacts, cli, stages
from cram.budget import Budget
from cram.ledger import Ledger
from cram.errors import CramError
from cram.interrupt import Interrupted

STAGES = ("measure", "text", "tokenizer", "data", "pretrain", "evaluate", "quantize", "report")


def test_help_and_version(cram):
    for arguments in ((), ("--help",), ("-h",), ("help",)):
        assert cram(*arguments).code == 0 and all(verb in cram(*arguments).out for verb in cli.VERBS)
    assert cram("--version").out.startswith("cram 0.")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--help"])
    assert ended.value.code == 0


@pytest.mark.parametrize("arguments, expected", [
    (["rum"], "unknown verb 'rum'; did you mean 'cram run'?"),
    (["xyzzy"], "unknown verb 'xyzzy'; possible: run, measure"),
    (["run", "--forc"], "unrecognized arguments: --forc; 'cram run --help'"),
    (["run", "--force=tokeniser"], "invalid choice: 'tokeniser'"),
    (["run", "demo", "demo_gtp"], "demo_gtp: no such configuration; did you mean 'demo_gpt'?"),
    (["run", "dmeo"], "no such configuration; did you mean 'demo'?"),
    (["run", "seed=x"], "command line: seed: expected a whole number, got 'x'"),
    (["run", "--train.thread=1"], "did you mean 'train.threads'?"),
    (["config", "--diff", "demo"], "needs two configurations"),
    (["data", "inspct"], "unknown verb 'data inspct'; did you mean 'cram data inspect'?"),
    (["data", "inspect", "out=/nowhere"], "text is not there for this configuration (input will be made: measure); run: cram text out="),
    (["tokenizer", "evaluate", "demo_gpt", "out=/nowhere"], "run: cram text demo_gpt out=/nowhere"),
    (["ledger"], "the following arguments are required: run"),
    (["ledger", "/nowhere"], "/nowhere: no ledger there; give a run's folder"),
])
def test_mistakes_end_in_one_line_and_code_2(cram, arguments, expected):
    code, out, err = cram(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_config_prints_values_with_meanings(cram):
    out = cram("config", "demo", "--model.layers=7", "train.threads=2").out
    line = next(line for line in out.splitlines() if line.strip().startswith("layers:"))
    assert line.split("#")[0].split() == ["layers:", "7"] and "* (default 12) number of Transformer blocks" in line
    assert cram("config").out == cram("config", "demo").out
    assert cram("config", "--diff", "demo", "demo_gpt").out == (
        "name: demo -> demo_gpt\nmodel.qk_norm: false -> true\nmodel.tied: true -> false\nobjective.type: masked -> causal\n")


def test_dry_run_and_status_write_nothing(cram, tmp_path):
    for arguments in (("run", "--dry-run"), ("status",), ("tokenizer", "--dry-run", "--force")):
        result = cram(*arguments, f"out={tmp_path}/out")
        assert result.code == 0 and result.out.splitlines()[0].split() == ["measure", "would", "run", "missing"]
    assert os.listdir(tmp_path) == []
    assert [line.split()[0] for line in cram("run", "--dry-run").out.splitlines()] == list(STAGES)
    assert [line.split()[0] for line in cram("data", "--dry-run").out.splitlines()] == ["measure", "text", "tokenizer", "data"]


@pytest.mark.parametrize("arguments, forced", [
    (["run", "--force"], "measure"), (["run", "--force", "demo"], "measure"), (["run", "demo", "--force=data"], "data"),
    (["run", "--force", "data", "demo"], "data"), (["data", "demo", "--force"], "data"),
    (["data", "--force=text"], "text"), (["data"], None),
])
def test_force_names_a_stage(cram, monkeypatch, arguments, forced):
    seen = []
    monkeypatch.setattr(stages.Runner, "run", lambda self, target, force: seen.append((target, force)))
    assert cram(*arguments).code == 0
    assert seen == [(None if arguments[0] == "run" else arguments[0], forced)]


@pytest.mark.parametrize("error, code, line", [
    (CramError("a: is\nwrong"), 2, "error: a: is wrong\n"),
    (OSError(28, "No space left on device", "/full/x"), 2,
     "error: the disk that holds /full/x is full (No space left on device): make room and run the same command again\n"),
    (OSError(122, "Disk quota exceeded"), 2, "error: the disk is full (Disk quota exceeded): make room and run the same command again\n"),
    (OSError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied; check the path and its permissions\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
])
def test_exit_codes(cram, monkeypatch, error, code, line):
    def fail(self, target, force):
        raise error

    monkeypatch.setattr(stages.Runner, "run", fail)
    result = cram("run")
    assert (result.code, result.err) == (code, line)


@pytest.mark.parametrize("settings, world, told", [
    (["train.fp8=true"], None, "train.fp8=true: needs a CUDA card"),
    (["optimizer.type=adamw", "optimizer.state_bits=8"], None, "optimizer.state_bits=8 needs bitsandbytes: pip install"),
    (["train.parallel=ddp"], None, "train.parallel=ddp: needs one process a card"),
    ([], 2, "train.parallel=none, but torchrun started 2 processes"),
    (["train.replay=short.f64", "budget=3 steps"], None, "train.replay=short.f64: 5 bytes are not eight for each step"),
])
def test_what_training_would_refuse_is_refused_before_the_data(cram, tmp_path, monkeypatch, settings, world, told):
    import importlib.util

    import torch

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    under_torchrun(monkeypatch, world)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.f64").write_bytes(b"12345")
    result = cram("run", *settings)
    assert result.code == 2 and result.err.startswith(f"error: {told}") and not (tmp_path / "runs").exists()
    monkeypatch.setattr(stages.Runner, "run", lambda self, target, force: None)
    assert cram("data", *settings).code == 0, "no training is due"


def under_torchrun(monkeypatch, world):
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if world:
            monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("world, launcher", [(None, ""), (2, "torchrun --nproc-per-node 2 -m ")])
def test_the_command_that_resumes_is_the_one_that_was_typed(capsys, monkeypatch, world, launcher):
    def stop(self, target, force):
        raise Interrupted

    under_torchrun(monkeypatch, world)
    monkeypatch.setattr(stages.Runner, "run", stop)
    settings = ["demo", "train.parallel=ddp"] if world else ["demo"]
    with pytest.raises(Interrupted):
        cli.main(["pretrain", *settings])
    assert f"resume with: {launcher}cram pretrain {' '.join(settings)}\n" == capsys.readouterr().out


def test_a_dry_run_needs_no_torchrun(cram, monkeypatch):
    under_torchrun(monkeypatch, None)
    assert cram("run", "--dry-run", "train.parallel=ddp").code == 0


def test_a_defect_is_not_hidden(monkeypatch):
    def fail(self, target, force):
        raise RuntimeError("a defect of the program")

    monkeypatch.setattr(stages.Runner, "run", fail)
    with pytest.raises(RuntimeError):
        cli.main(["run"])


def test_status_shows_a_running_and_an_interrupted_stage(cram, tmp_path, monkeypatch):
    def train(config, inputs, out, key, say):
        state.append(cram("status", *settings).out)
        raise KeyboardInterrupt

    state, settings = [], ["demo", f"out={tmp_path}"]
    toy = (stages.Stage("pretrain", 1, ("seed",), (), train, resumable=True, precious=True),)
    monkeypatch.setattr(cli, "STAGES", toy)
    assert cram("pretrain", *settings).code == 130
    assert state == [f"pretrain   running      process {os.getpid()}\n"]
    assert cram("status", *settings).out == f"pretrain   interrupted  resume with: cram run demo out={tmp_path}\n"


def test_ledger_is_found_verified_and_shown(cram, tmp_path):
    folder = tmp_path / "demo" / "pretrain"
    ledger = Ledger(folder / "ledger.jsonl", Budget.parse("2 steps"), "id")
    ledger.count(steps=2, tokens=256, flops=1e6)
    ledger.close("finished")
    shown = {cram("ledger", path).out.partition(":")[2] for path in (tmp_path / "demo", folder, folder / "ledger.jsonl")}
    assert len(shown) == 1
    text = shown.pop()
    assert "verified" in text and "budget     2 steps" in text and "(100.00%)" in text and "256 tokens" in text
    assert all(category in text for category in ("setup", "compile", "steps", "validation", "saving", "data_wait", "lost"))
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:1] + lines[2:]))
    result = cram("ledger", tmp_path / "demo")
    assert result.code == 2 and "ledger.jsonl" in result.err and result.err.count("\n") == 1


def test_python_m_cram_without_torch():
    """The command starts fast: looking at a configuration loads neither torch nor datasets."""
    code = ("import sys; from cram.cli import main; code = main(['run', '--dry-run', 'out=/nonexistent']); "
            "print(code, sorted({'torch', 'datasets', 'matplotlib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    done = subprocess.run([sys.executable, "-m", "cram", "config", "nope"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: nope:")


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(f"{sys.executable} -m cram config | head -1", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1


def test_writer_of_nothing(tmp_path):
    assert artifacts.writer(tmp_path / "artifacts" / "x") is None


def test_a_reader_who_leaves_does_not_stop_the_work():
    """cram run | head: the pipe breaks, the work goes on."""
    code = "import sys; from cram.cli import _tell; [_tell('x' * 9999) for _ in range(99)]; sys.stderr.write('to the end')"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker.stdout.read(10)
    worker.stdout.close()
    assert worker.stderr.read() == "to the end" and worker.wait() == 0
