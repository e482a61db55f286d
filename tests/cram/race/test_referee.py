"""A race of fake peers: who runs when, what is kept, what a failure does."""

import json
import math
import statistics
from dataclasses import replace

import pytest
from scipy import stats

from cram.race.course import Course
from cram.race.race_file import Entry, Race
from cram.race.referee import enter, hold, order
from cram.race.statistics import compare, finals, reached
from cram.race.store import Store

FAKE = "tests.cram.race.fake_adapter"


def race(**changes):
    entries = {"ours": Entry("ours", FAKE, {"each": "0.01", "tokens": "60"}),
               "peer": Entry("peer", FAKE, {"each": "0.02", "tokens": "20"},
                             choices=({"tokens": "2"}, {"tokens": "40"}), share=0.5),
               "broken": Entry("broken", FAKE, {"fail": "yes"})}
    return Race(**{"name": "fakes", "kind": "causal", "budget": 0.8, "entries": entries, "ours": "ours", "threads": 1,
                   "seeds": 1, "ladder": (0.6,), **changes})


@pytest.fixture
def held(tiny, tmp_path):
    """Hold a race in one folder; returns (results, labels of the processes that were started)."""
    course = Course("causal", tmp_path, tiny["text"], tiny["tokenizer"], tiny["data"], tmp_path / "text.yaml", 4000, 0.15)
    course.settings.write_text("data: {}\n")

    def go(race, retry=False, say=lambda line: None):
        able, refused = enter(race, course, tmp_path / "work", {}, {}, lambda line: None)
        assert not refused
        found = hold(race, able, Store(tmp_path, retry), say)
        started = []
        for file in (tmp_path / "work").glob("started.txt"):
            started += file.read_text().split()
            file.unlink()
        return found, started
    return go


def test_everybody_runs_once_a_seed_and_another_one_first():
    found = list(order(race(seeds=3), ["ours", "peer", "broken"]))
    assert [name for _, name, share in found if share == 1.0] == ["ours", "peer", "broken", "peer", "broken", "ours",
                                                                  "broken", "ours", "peer"]
    assert {seed for seed, _, _ in found} == {0, 1, 2} and sum(share == 0.6 for _, _, share in found) == 3


def test_a_race_is_run_scored_and_found_again(held):
    results, started = held(race())
    by = {(each["competitor"], each["share"], each["seed"]): each for each in results}
    assert len(by) == len(results) == 2 + 1 + 1
    for (name, _, _), result in by.items():
        if name == "broken":
            assert "exit status 3" in result["failure"] and result["failure"].endswith("a last word") and not result["score"]
        else:
            assert result["failure"] is None and result["score"]["bits_per_byte"] > 0 and result["tokens"] > 0
            assert result["curve"] and result["curve"][0][1] == 8.0 and result["parameters"] > 0
            assert result["seconds"] >= result["curve"][-1][0]
    assert by["peer", 1.0, 0]["settings"]["tokens"] == "40"             # the better of its choices: it saw more text
    assert any("tune" in label for label in started) and any("calibration" in label for label in started)
    assert [label for label in started if label.startswith("broken")] == ["broken-calibration"]

    again, started = held(race())
    assert not started and json.dumps(again, default=str) == json.dumps(results, default=str)
    _, started = held(race(seeds=2))                                    # only what is new
    assert started and all("seed1" in label for label in started)
    changed = race()
    changed = replace(changed, entries={**changed.entries, "ours": Entry("ours", FAKE, {"each": "0.01", "tokens": "61"})})
    _, started = held(changed)
    assert started and all(label.startswith("ours") for label in started)


def test_failures_are_run_again_when_asked(held):
    only = race(entries={"ours": Entry("ours", FAKE), "broken": Entry("broken", FAKE, {"fail": "yes"})}, ladder=(), seeds=1)
    held(only)
    said = []
    assert held(only, say=said.append)[1] == []
    assert any(line.startswith("broken: failed before: ") and "--retry" in line for line in said)
    assert held(only, retry=True)[1] == ["broken-calibration"]


def test_who_cannot_take_part_says_why(tiny, tmp_path):
    course = Course("masked", tmp_path, tiny["text"], tiny["tokenizer"], tiny["data"], tmp_path / "text.yaml", 4000, 0.15)
    entries = {"ours": Entry("ours", "cram"), "gpt": Entry("gpt", "nanogpt"), "bert": Entry("bert", "cramming"),
               "wrong": Entry("wrong", "cramming")}
    able, refused = enter(race(kind="masked", entries=entries), course, tmp_path, {"wrong": tmp_path}, {}, print)
    assert [each.entry.name for each in able] == ["ours"]
    assert "causal models only" in refused["gpt"] and "no checkout of cramming" in refused["wrong"]
    assert "git clone https://github.com/JonasGeiping/cramming" in refused["bert"]


def results(**values):
    """name or name_share -> finals by seed."""
    return [{"competitor": name.partition("_")[0], "share": float(name.partition("_")[2] or 100) / 100, "seed": seed,
             "seconds": float(name.partition("_")[2] or 100), "failure": None, "score": {"bits_per_byte": value}}
            for name, finals in values.items() for seed, value in enumerate(finals)]


def test_the_paired_test_is_the_one_of_scipy_and_of_the_textbook():
    ours, theirs = {0: 2.0, 1: 2.1, 2: 2.05}, {0: 2.3, 1: 2.5, 2: 2.2, 3: 9.0}
    found = compare(ours, theirs)
    gains = [0.3, 0.4, 0.15]
    t = statistics.mean(gains) / (statistics.stdev(gains) / 3**0.5)
    assert found.seeds == 3 and found.gain == pytest.approx(statistics.mean(gains))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 2))
    assert compare({0: 1.0}, {0: 2.0}).p is None and compare({0: 1.0}, {1: 2.0}) is None
    assert compare(ours, ours).p == 1.0


def test_ranks_tell_apart_what_lies_in_two_heaps():
    """Six runs of ours ahead of each of theirs, of which half are a little worse and half are far off."""
    ours = {seed: 3.1 + seed / 100 for seed in range(6)}
    theirs = {seed: 3.8 + seed / 100 + 3 * (seed % 2) for seed in range(6)}
    found = compare(ours, theirs)
    assert found.p_ranks == pytest.approx(2 / math.comb(12, 6)) and found.p > found.p_ranks
    assert compare(theirs, ours).p_ranks == found.p_ranks and compare(ours, ours).p_ranks == 1.0
    assert compare({0: 1.0, 1: 1.1, 2: 1.2}, {0: 2.0, 1: 2.1, 2: 2.3}).p_ranks == pytest.approx(0.1)
    assert compare({0: 1.0}, {0: 2.0}).p_ranks is None


def test_the_time_when_ours_was_as_good_is_that_of_a_whole_run():
    found = results(ours_10=[3.0, 3.1], ours_30=[2.4, 2.5], ours=[2.0, 2.1], peer=[2.6, 2.7])
    assert finals(found, "ours", 0.3, "bits_per_byte") == {0: 2.4, 1: 2.5}
    when = reached(found, "ours", "peer", "bits_per_byte")
    assert when.share == 0.3 and when.seconds == 30 and when.comparison.gain == pytest.approx(0.2)
    assert 10 < when.between < 30
    never = reached(results(ours=[2.0], peer=[1.0]), "ours", "peer", "bits_per_byte")
    assert never.share is None and never.between is None
    assert reached(results(ours=[2.0]), "ours", "peer", "bits_per_byte") is None
