"""The doctor on made-up machines: what it says of each, and its exit code."""

import re
from dataclasses import replace

import pytest
import torch

from cram.insight.doctor import command as doctor, facts as gathering, presets
from cram.insight.doctor.checks import NOTE, OK, PROBLEM, WARNING, examine, lines
from cram.insight.doctor.facts import CardFacts, Facts, gather
from cram.insight.plan.costs import Costs
from cram.errors import CramError

GB = 2**30
LAPTOP = Facts(torch="2.13.0+cpu", memory_total=16 * GB, memory_free=9 * GB, shm_free=8 * GB, disk_free=200 * 10**9,
               write_speed=4e8,
               row_seconds=0.003, cores=8, allowed_cores=8, threads=8, load=0.4, hub="")
RENTED = replace(LAPTOP, torch="2.13.0", torch_cuda="12.8", driver="570.86", driver_cuda=(12, 8), triton="3.7.1",
                 card=CardFacts("NVIDIA H100 80GB HBM3", (9, 0), 80 * GB, 79 * GB, fp8=True))


def states(facts):
    return {finding.what: finding.state for finding in examine(facts)}


def test_a_laptop_and_a_rented_card_are_ready():
    assert set(states(LAPTOP).values()) <= {OK, NOTE} and states(LAPTOP)["card"] == NOTE
    assert set(states(RENTED).values()) == {OK}
    assert "fp8" in next(finding.told for finding in examine(RENTED) if finding.what == "precision")


def card(**changes):
    return replace(RENTED, card=replace(RENTED.card, **changes))


@pytest.mark.parametrize("facts, what, state, told", [
    (replace(LAPTOP, python=(3, 9, 1)), "Python", PROBLEM, "3.11 or newer"),
    (replace(LAPTOP, system="Darwin"), "system", NOTE, "tested on Linux"),
    (replace(LAPTOP, torch=None), "torch", PROBLEM, "not installed"),
    (replace(LAPTOP, driver="570", driver_cuda=(12, 8)), "driver", WARNING, "CPU build"),
    (replace(RENTED, driver_cuda=(11, 4)), "driver", PROBLEM, "torch wants 12.8"),
    (replace(RENTED, card=None), "driver", WARNING, "torch sees no card"),
    (replace(RENTED, driver=None, driver_cuda=None, card=None), "driver", NOTE, "no NVIDIA driver"),
    (card(total=6 * GB, free=6 * GB), "card memory", WARNING, "begin at 8 GB"),
    (card(bf16=False, fp8=False), "precision", NOTE, "fp16 with loss scaling"),
    (card(others=[(77, 70 * GB)], free=9 * GB), "card shared", PROBLEM, "pid 77"),
    (card(others=[(77, 1 * GB)], free=78 * GB), "card shared", WARNING, "1.0 GiB"),
    (card(attention="differs from torch's by 3"), "attention", WARNING, "model.attention=sdpa"),
    (card(energy=False), "energy", NOTE, "goes without"),
    (replace(RENTED, triton=None), "triton", WARNING, "pip install triton"),
    (replace(LAPTOP, memory_free=GB), "memory", PROBLEM, "data.workers=1"),
    (replace(LAPTOP, memory_free=None), "memory", NOTE, "cannot be read"),
    (replace(LAPTOP, shm_free=2**20), "/dev/shm", WARNING, "--shm-size"),
    (replace(LAPTOP, disk_error="Permission denied"), "disk", PROBLEM, "out=..."),
    (replace(LAPTOP, disk_free=10**8), "disk", WARNING, "0.1 GB free"),
    (replace(LAPTOP, row_seconds=0.5), "writing", WARNING, "500.0 ms"),
    (replace(LAPTOP, cpu_bf16=True), "precision", NOTE, "train.precision=native"),
    (replace(LAPTOP, group_cores=2.0), "threads", WARNING, "train.threads=2"),
    (replace(LAPTOP, allowed_cores=4), "threads", WARNING, "8 threads on 4 cores"),
    (replace(LAPTOP, load=12.0), "load", WARNING, "12.0 processes"),
    (replace(LAPTOP, allocator=False), "allocator", NOTE, "not glibc"),
    (replace(LAPTOP, unmet=["tokenizers>=0.21 (here: 0.13)"]), "packages", PROBLEM, "tokenizers>=0.21"),
    (replace(LAPTOP, strayed=["a 1 (tested: 2)"] * 5), "versions", NOTE, "and 2 more"),
    (replace(LAPTOP, foreign_kernels="0.5"), "kernels", OK, "not in the way"),
    (replace(LAPTOP, clock_drift=0.2), "clock", PROBLEM, "use steps, tokens or FLOPs"),
    (replace(LAPTOP, clock_year=1970), "clock", WARNING, "1970"),
    (replace(LAPTOP, hub="timed out"), "network", NOTE, "data.mirror"),
])
def test_every_ailment_is_named_with_its_remedy(facts, what, state, told):
    found = [finding for finding in examine(facts) if finding.what == what]
    assert [finding.state for finding in found] == [state]
    assert told in " ".join(lines(found)) and (state in (OK, NOTE) or found[0].remedy)


def test_a_refused_network_is_no_error_and_a_skipped_one_is_not_told():
    assert PROBLEM not in states(replace(LAPTOP, hub="refused")).values()
    assert "network" not in states(replace(LAPTOP, hub=None))


def test_the_exit_code_says_whether_a_run_would_be_stopped(cram, monkeypatch):
    for machine, code, last in ((LAPTOP, 0, "ready: nothing here stops a run"),
                                (replace(LAPTOP, disk_error="Read-only file system", memory_free=GB), 1,
                                 "2 problems would stop a run")):
        monkeypatch.setattr(gathering, "gather", lambda out, quick, machine=machine: machine)
        found = cram("doctor", "--quick")
        assert (found.code, found.out.strip().splitlines()[-1]) == (code, last)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = cram("doctor", "--quick", "train.device=cuda")
    assert asked.code == 1 and "train.device=cuda: torch sees no CUDA card here" in asked.out
    wrong = cram("doctor", "demo")
    assert wrong.code == 2 and "cram plan demo" in wrong.err


def test_this_machine_can_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "WRITTEN", 2**16)
    facts = gather(tmp_path / "not" / "there", quick=True)
    assert facts.torch == torch.__version__ and facts.disk == str(tmp_path) and facts.disk_error is None
    assert facts.write_speed > 0 and facts.row_seconds > 0 and facts.hub is None and facts.allowed_cores >= 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_told(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(30, "Read-only file system")
    monkeypatch.setattr("data_prep.files.replace_durably", refuse)
    assert gather(tmp_path, quick=True).disk_error == "Read-only file system"


def test_the_network_is_reached_or_the_reason_told(monkeypatch):
    import urllib.error
    assert "refused" in gathering.reach("http://127.0.0.1:9/", 0.5).lower()

    def answer(code):
        def opened(request, timeout):
            raise urllib.error.HTTPError(request.full_url, code, "no", {}, None)
        return opened
    monkeypatch.setattr(gathering.urllib.request, "urlopen", answer(403))
    assert gathering.reach("http://example.invalid") == ""
    monkeypatch.setattr(gathering.urllib.request, "urlopen", answer(503))
    assert gathering.reach("http://example.invalid") == "answers 503"


# ---- presets


def made_costs(rate):
    def measure(config, seconds):
        return Costs("made up", "cpu", True, torch.float32, min(8192, config.train.batch_tokens), {}, rate, 0.001, 1.0, 0.0,
                     0.1, 0.1,
                     memory_bytes=2**36)
    return measure


def test_presets_on_a_slow_and_on_a_fast_machine(tmp_path):
    slow, fast = ({finding.what: finding for finding in presets.judge([f"out={tmp_path}"], 1.0, made_costs(rate),
                                                                      ("demo", "bert_day"))}
                  for rate in (5e10, 4e14))
    assert slow["demo"].state in (OK, NOTE) and slow["bert_day"].state == WARNING
    assert "too little to learn from" in slow["bert_day"].remedy
    assert float(re.search(r"takes ([\d,.]+) days", slow["bert_day"].told)[1].replace(",", "")) > 1000
    assert fast["bert_day"].state in (OK, NOTE) and "takes 0." in fast["bert_day"].told
    assert "takes" not in fast["demo"].told


def test_a_preset_that_does_not_fit_is_a_warning_with_a_way_out():
    def measure(config, seconds):
        raise CramError("does not fit: it takes 9 GiB")
    (found,) = presets.judge([], 1.0, measure, ("bert_day",))
    assert found.state == WARNING and "does not fit" in found.told and "--gpu H100" in found.remedy
    assert doctor.SECONDS > 0
