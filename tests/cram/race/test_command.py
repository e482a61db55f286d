"""``cram race`` from the command line, with fake peers on a small text."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

from cram.cli import main
from tests.cram.conftest import WORDS

RACE = """kind: causal
budget: 1s
threads: 1
seeds: 2
ours: ours
ladder: [3/4]
heldout_bytes: 20_000
text: [demo, tokenizer.vocab_size=300, data.filters.min_chars=20, data.validation_fraction=0.1, data.workers=1]
competitors:
  ours:
    adapter: tests.cram.race.fake_adapter
    settings: {each: 0.02, tokens: 60}
    speed: {tokens: 10, context: 10}
  peer:
    adapter: tests.cram.race.fake_adapter
    settings: {each: 0.02, tokens: 3}
    speed: [{each: 0.04, tokens: 10, context: 10}, {each: 0.01}]
  broken:
    adapter: tests.cram.race.fake_adapter
    settings: {fail: yes}
  gpt:
    adapter: nanogpt
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    (tmp_path / "corpus.jsonl").write_text("".join(
        json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "."}) + "\n" for _ in range(300)))
    (tmp_path / "fakes.yaml").write_text(RACE)
    return tmp_path


def test_a_command_for_others_names_checkouts_and_leaves_out_where_results_go():
    from cram.race.command import repeatable

    given = ["causal", "--checkout", "gpt=../x", "--checkout=bert=/y", "--python", "bert=/z/python", "--out=/o", "--retry",
             "--out", "p", "--seeds", "3", "data.source=files"]
    assert repeatable(given) == ["causal", "--checkout", "gpt=gpt", "--checkout", "bert=bert", "--python",
                                 "bert=PYTHON-OF-bert", "--seeds", "3", "data.source=files"]


def race(*more):
    return main(["race", "fakes.yaml", "data.source=files", "data.files=[corpus.jsonl]", *more])


def test_a_whole_race_and_its_page(place, capsys):
    assert race() == 0
    said = capsys.readouterr().out
    assert "gpt: does not take part: no checkout given; git clone https://github.com/karpathy/nanoGPT" in said
    out = place / "runs" / "races" / "fakes"
    record = json.loads((out / "race.json").read_text())
    assert len(record["results"]) == 2 * (2 + 1 + 1) and record["measure"] == "bits_per_byte"
    assert record["course"]["heldout_bytes"] == record["course"]["heldout_bytes"] > 0
    page, text = (out / "race.html").read_text(), (out / "race.md").read_text()
    assert page.count("<svg") == 2 and "<script" not in page
    assert "http" not in re.sub(r"https://github\S+|http://www.w3\S+", "", page)
    for path in (str(place), sys.prefix, str(Path(__file__).parents[3])):        # no paths of this machine
        assert all(path not in each for each in (text, page, (out / "race.json").read_text()))
    values = [result["score"]["bits_per_byte"] for result in record["results"]
              if result["competitor"] == "peer" and result["failure"] is None]
    assert f"{sum(values) / 2:.4f} ±" in text and "a last word" in text and "exit status 3" in text
    assert "ours was as good as peer in the end" in text and "sha256 " + record["course"]["heldout_sha256"] in text
    assert race() == 0                                  # all found again
    assert " runs for " not in capsys.readouterr().out


def test_a_page_is_made_again_from_its_record(place, capsys):
    assert race() == 0
    out = place / "runs" / "races" / "fakes"
    names = ("race.json", "race.md", "race.html", "finals.svg", "curves.svg")
    before = {name: (out / name).read_bytes() for name in names}
    record = json.loads(before["race.json"])
    record["results"][0]["commit"] = "another"          # of seed 0 alone
    (out / "race.json").write_text(json.dumps(record))
    for name in names[1:]:
        (out / name).unlink()
    assert main(["race", "--render", str(out / "race.json")]) == 0
    assert {"finals.svg", "curves.svg"} <= {name for name in names if (out / name).read_bytes() == before[name]}
    assert re.search(r"ours another, seeds 0\nours \w+(\+\w+)?, seeds 0, 1\n", (out / "race.md").read_text())
    assert json.loads((out / "race.json").read_text()) == record
    capsys.readouterr()
    for content, told in (("{", "not the record"), ('{"race": "x"}', "without kind, budget")):
        (out / "race.json").write_text(content)
        assert main(["race", "--render", str(out / "race.json")]) == 2 and told in capsys.readouterr().err
    assert main(["race", "causal", "--render", str(out / "race.json")]) == 2 and main(["race"]) == 2


def test_a_machine_that_changed_its_pace_is_told():
    from cram.race.page import unsteady_blocks
    results = [{"competitor": name, "seed": seed, "share": share, "seconds": 10.0, "tokens": tokens, "failure": failure}
               for name, seed, share, tokens, failure in [
                   ("steady", 0, 1.0, 1000, None), ("steady", 1, 1.0, 1090, None), ("steady", 1, 0.3, 5, None),
                   ("drifted", 0, 1.0, 12_000, None), ("drifted", 1, 1.0, 20_000, None), ("silent", 0, 1.0, None, None),
                   ("failed", 0, 1.0, 1, "it fell"), ("failed", 1, 1.0, 9, None)]]
    (_, told), = unsteady_blocks({"plans": dict.fromkeys(["steady", "drifted", "silent", "failed"]), "results": results})
    assert "drifted made 1,200 tokens/s with seed 0, 2,000 with seed 1" in told


@pytest.fixture
def simulated(monkeypatch):
    """Processes that take what their settings say, in no time: 10 s to start, then 20 or 40 ms a step."""
    from cram.race.clock import Outcome
    from cram.race.competitor import Competitor
    monkeypatch.setattr(Competitor, "start", lambda self, job, budget: Outcome(
        10 + job.amount * float(job.settings["each"]), int(job.settings.get("fail") == "yes"), [(0.0, "a last word")]))


def test_the_speed_of_two_is_told_as_a_ratio(place, capsys, simulated):
    assert race("--speed") == 0
    record = json.loads((place / "runs" / "races" / "fakes" / "speed.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["ours"]["tokens_per_second"] == pytest.approx(10 / 0.02)
    assert rows["peer"]["tokens_per_second"] == pytest.approx(10 / 0.04)
    assert rows["peer with each=0.01"]["tokens_per_second"] == pytest.approx(10 / 0.01)
    said = capsys.readouterr().out
    assert re.search(r"peer +1 x 10 +250.0 .* 2.00", said) and "page: " in said
    assert re.search(r"peer with each=0.01 +1 x 10 +1,000.0 .* 0.50", said)


def test_a_dry_run_starts_nothing(place, capsys):
    assert race("--dry-run", "--budget", "10m") == 0
    said = capsys.readouterr().out
    assert "ours: 2 x 600 s and 450 s" in said and "8 runs on cpu, 1 threads; at least 75 minutes" in said
    assert not (place / "runs").exists()
    tuned = "tokens: 3}\n    tune: {share: 0.5, choices: [{tokens: 4}, {tokens: 5}]}\n"
    (place / "fakes.yaml").write_text(RACE.replace("tokens: 3}\n", tuned, 1))
    assert race("--dry-run", "--budget", "10m") == 0
    assert "10 runs on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, told", [
    (["fakes.yaml", "--checkout", "gpt"], "expected NAME=PATH"),
    (["fakes.yaml", "--checkout", "nobody=."], "nobody does not race"),
    (["fakes.yaml", "--checkout", "gpt=missing"], "git clone https://github.com/karpathy/nanoGPT"),
    (["fakes.yaml", "model.layers=3"], "data.* and tokenizer.* keys only"),
    (["fakes.yaml", "--seeds", "0"], "from 1 up"),
    (["fakes.yaml", "--budget", "3 steps"], "no time"),
    (["causl"], "did you mean 'causal'"),
    (["causal_card"], "there is none here"),
])
def test_wrong_arguments_end_in_one_line(place, arguments, told, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["race", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
