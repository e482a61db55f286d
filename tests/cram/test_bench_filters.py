"""cram bench filters: junk that filters see, arms that differ in their text alone, a verdict that is arithmetic."""

import json
import random

import pytest

from cram.bench import corpora, filters
from cram.bench.filters import ARMS, Plan
from cram.bench.web_text import PAGES, Recipe, make_web
from cram.cli import main
from cram.config import load
from cram.errors import CramError
from cram.schema import NearDedup
from data_prep import minhash, statistics
from data_prep.blocks import Block
from data_prep.dedup import document_keys
from data_prep.filters import active_rules, decide
from tests.cram.test_bench_data import WORDS, documents


def kept(texts):
    """bool [documents]: what FineWeb's rules keep."""
    rules = [each for each in active_rules(load("filters/fineweb").data.filters) if each[0].name != "max_contaminated_ngrams"]
    return decide(statistics.measure(Block(texts)), rules) < 0


# ---- web-like text


def test_web_text_has_the_stated_shares():
    texts, recipe = documents(200), Recipe(copied=0.5, near=0.25)
    pages, kinds = make_web(texts, recipe, seed=3)
    assert (pages, kinds) == make_web(texts, recipe, seed=3) and pages != make_web(texts, recipe, seed=4)[0]
    assert len(pages) == sum(kinds.values()) and kinds["documents"] == 200
    assert [kinds[kind] for kind in ("boilerplate", "numbers", "lorem", "keywords", "foreign")] == [30, 20, 10, 20, 20]
    clean = sum(any(text in page for text in texts) for page in set(pages))
    wrapped = sum(any(text in page and text != page for text in texts) for page in set(pages))
    assert clean >= 200 and 50 < wrapped < 110
    assert len(pages) - len(set(pages)) >= kinds["exact copies"] > 100 and kinds["near copies"] % recipe.near_copies == 0
    keys = document_keys(pages)
    assert len({tuple(key) for key in keys.tolist()}) <= len(pages) - kinds["exact copies"]


def test_a_recipe_of_nothing_is_the_clean_text():
    nothing = Recipe(wrapped=0, boilerplate=0, numbers=0, lorem=0, keywords=0, foreign=0, copied=0, near=0)
    assert sorted(make_web(documents(30), nothing)[0]) == sorted(documents(30))


@pytest.mark.parametrize("kind", PAGES)
def test_every_kind_of_junk_is_what_filters_drop(kind):
    rng = random.Random(0)
    assert kept([PAGES[kind](rng, WORDS) for _ in range(50)]).mean() < 0.1


def test_clean_documents_pass():
    assert kept(documents(50)).all()


# ---- corpora on disk


def test_held_out_text_is_nowhere_else_and_files_keep_their_time(tmp_path):
    texts = documents(120)
    twice = [*texts, *texts, *(corpora.edited(text, 0.01, WORDS, random.Random(1)) for text in texts)]
    plan = Plan(megabytes=0.05, held_out=0.02)
    held_out, web, kinds = filters.write_corpora(twice, plan, tmp_path)
    scored, pages = ([json.loads(line)["text"] for line in path.read_text().splitlines()] for path in (held_out, web))
    assert 20_000 < held_out.stat().st_size < 25_000 and len(pages) == sum(kinds.values())
    bands = [minhash.bands(Block(each), NearDedup()) for each in (scored, pages)]
    assert not (bands[0][:, None] == bands[1][None]).any(), "no page resembles a held-out document"
    before = [path.stat().st_mtime_ns for path in (held_out, web)]
    assert filters.write_corpora(twice, plan, tmp_path) == (held_out, web, kinds)
    assert [path.stat().st_mtime_ns for path in (held_out, web)] == before
    with pytest.raises(CramError, match="give more --files"):
        filters.write_corpora(texts[:2], plan, tmp_path)


# ---- verdict


def test_the_verdict_pairs_by_seed():
    rows = [{"arm": arm, "seed": seed, "bits_per_byte": base + seed, "gain": 3.0 - base + 0.01 * seed}
            for arm, base in (("raw", 3.0), ("filtered", 2.5)) for seed in (0, 1)]
    rows.append({"arm": "filtered + deduplicated", "seed": 0, "error": "no room"})
    raw, filtered = filters.conclude(rows)
    assert raw == "Verdict, raw: 3.5000 bits per byte (standard deviation 0.7071), 2 seed(s)."
    assert filtered.endswith("less than raw by +0.5050 ± 0.0635 (95%).")


def test_a_failed_arm_is_a_row_and_the_others_go_on(monkeypatch, tmp_path):
    def run(arm, seed, *rest):
        if arm == "filtered":
            raise CramError("no document is left")
        return {"bits_per_byte": 2.0 - 0.5 * (arm != "raw"), "held_out_bytes": 9}
    monkeypatch.setattr(filters, "_run", run)
    plan = Plan(megabytes=0.05, held_out=0.02)
    [rows] = filters.measure(documents(120), plan, 1, "cpu", tmp_path, lambda line: None)
    assert [row["arm"] for row in rows] == list(ARMS) and rows[1]["error"] == "no document is left" and "gain" not in rows[1]
    assert rows[0]["gain"] == 0 and rows[2]["gain"] == 0.5 and rows[0]["pages"]["documents"] > 10


def test_text_of_another_size_is_not_compared():
    raw = {"bits_per_byte": 2.0, "held_out_bytes": 1000}
    other = filters._compared(raw | {"held_out_bytes": 999}, None, raw)
    assert other == {"error": "scored on other text: 999 bytes, raw: 1,000"}
    assert filters._compared(raw | {"bits_per_byte": 1.5}, None, raw)["gain"] == 0.5


def test_held_out_text_is_as_edits_leave_it():
    odd = "One line[1] of text is here.\nTwo words\nUses javascript so it goes.\nMail me at someone@place.org about it."
    assert filters._edited([odd, "Short", "A whole line of words."]) == [
        "One line of text is here.\nMail me at email@example.com about it.", "A whole line of words."]


# ---- the command


@pytest.mark.parametrize("arguments, told", [
    (["loss", "--files", "x"], "--files is for cram bench data, filters, defaults, overhead, techniques, not for loss"),
    (["filters", "--whole"], "--whole is for cram bench data, not for filters"),
    (["data", "--megabytes", "3"], "cram bench data --megabytes needs --whole"),
    (["filters", "--megabytes", "3", "4"], "takes one size of --megabytes"),
    (["data", "--whole", "--megabytes", "-3"], "expected megabytes above 0, got '-3'"),
    (["data", "--files", "/nowhere/*.jsonl"], "/nowhere/*.jsonl")])
def test_mistakes_end_in_one_line(cram, arguments, told):
    code, out, err = cram("bench", *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and told in err


@pytest.mark.slow
def test_the_whole_command_and_again(tmp_path):
    path = tmp_path / "clean.jsonl"
    lines = [f"{text}\nTwo words" for text in documents(900)]          # a line that edits remove
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    out, runs = tmp_path / "out", tmp_path / "runs"
    command = ["bench", "filters", "--quick", "--files", str(path), "--out", str(out), "--runs", str(runs)]
    assert main(command) == 0
    record = json.loads((out / "filters_cpu.json").read_text())
    rows = {(row["arm"], row["seed"]): row for row in record["rows"]}
    assert set(rows) == {(arm, seed) for arm in ARMS for seed in (0, 1)} and not any("error" in row for row in rows.values())
    for seed in (0, 1):
        raw, filtered, both = (rows[arm, seed] for arm in ARMS)
        assert raw["documents"] > filtered["documents"] > both["documents"] > 100
        assert raw["tokens_seen"] == filtered["tokens_seen"] == both["tokens_seen"] == 8 * 512
        assert raw["held_out_bytes"] == filtered["held_out_bytes"] == both["held_out_bytes"] > 10_000, "the same held-out text"
        assert filtered["gain"] == raw["bits_per_byte"] - filtered["bits_per_byte"]
    first, second = rows["raw", 0], rows["raw", 1]
    assert first["bits_per_byte"] != second["bits_per_byte"] and first["tokens"] == second["tokens"]
    page = (out / "filters_cpu.md").read_text()
    assert "Verdict, filtered + deduplicated:" in page and "(95%)" in page and "zipf 1.5" in page
    ledgers = {path: path.read_bytes() for path in runs.glob("artifacts/*/ledger.jsonl")}
    assert len(ledgers) == 6 and main(command) == 0
    assert {path: path.read_bytes() for path in runs.glob("artifacts/*/ledger.jsonl")} == ledgers, "nothing ran again"
    assert json.loads((out / "filters_cpu.json").read_text())["rows"] == record["rows"]
