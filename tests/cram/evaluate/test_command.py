"""``cram evaluate RUN tasks=...`` through the real command line, on a run whose weights are drawn."""

import json

import pytest

from cram.evaluate.minimal_pairs import pair_scores
from cram.evaluate.subject import open_subject
from cram.evaluate.tasks import all_tasks, choose_tasks
from tests.cram.after.made_run import made_run

PAIRS = [{"sentence_good": "the model and the token", "sentence_bad": "model the token and the"},
         {"sentence_good": "a step in the loss", "sentence_bad": "a loss in the step"},
         {"sentence_good": "it is that for on", "sentence_bad": "for that it on is"}]


@pytest.fixture
def folder(tmp_path, tiny, small_config, monkeypatch):
    """runs/mine, a causal run, and mine.jsonl, minimal pairs."""
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs" / "mine", small_config("objective.type=causal"), tiny)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def test_scores_are_written_and_kept_and_more_tasks_added(cram, folder):
    first = cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl")
    assert first.code == 0, first.err
    subject = open_subject("runs/mine", say=lambda line: None)
    scores_P2 = pair_scores(subject, [{"good": row["sentence_good"], "bad": row["sentence_bad"]} for row in PAIRS])
    expected = float((scores_P2[:, 0] > scores_P2[:, 1]).mean())
    out = folder / "runs" / "mine" / "benchmarks"
    found = json.loads((out / "benchmarks.json").read_text())
    result = found["results"]["pairs:mine.jsonl"]
    assert (result["score"], result["examples"], result["chance"]) == (expected, 3, 0.5)
    assert result["overlap"] == {"examples": 3, "comparable": 0, "found": 0}
    assert found["identity"] == subject.identity and f"{100 * expected:.1f}" in first.out
    assert sorted(path.name for path in out.iterdir()) == [f"benchmarks.{kind}" for kind in ("html", "json", "md", "svg")]
    again = cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl")
    assert "(kept)" in again.out and json.loads((out / "benchmarks.json").read_text()) == found
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:2]))
    assert "(kept)" not in cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl", "--out", folder / "other").out
    assert json.loads((folder / "other" / "benchmarks.json").read_text())["results"]["pairs:mine.jsonl"]["examples"] == 2


def test_the_list_names_every_task_once(cram):
    out = cram("evaluate", "--list").out
    names = [line.split()[0] for line in out.splitlines()]
    assert names == list(all_tasks()) and len(set(names)) == len(names) > 25
    assert all(task.source and task.what for task in all_tasks().values())


def test_groups_and_names_are_chosen_once_in_the_order_given():
    names = [task.name for task in choose_tasks(["glue.rte", "glue", "blimp"])]
    assert names[0] == "glue.rte" and names[-1] == "blimp" and len(names) == len(set(names)) == 10
    assert len(choose_tasks(["all"])) == len(all_tasks())


@pytest.mark.parametrize("arguments, said", [
    (["runs/mine", "tasks=glue.mprc"], "no benchmark 'glue.mprc'; did you mean 'glue.mrpc'?"),
    (["runs/mine"], "no benchmarks named; try: cram evaluate runs/mine tasks=blimp"),
    (["runs/mine", "tasks=blimp", "model.layers=3"], "'model.layers' is nothing that can be set for an evaluation"),
    (["runs/mine", "tasks=glue.rte", "evaluate.finetune.epochs=9"], "evaluate.finetune.epochs: at most 5"),
    (["runs/mine", "tasks=glue.rte", "evaluate.finetune.seed=9"], "evaluate.finetune.seed"),
    (["runs/mine", "tasks=blimp", "evaluate.mirror=nowhere"], "no folder nowhere"),
    (["runs/mine", "tasks=blimp.original"], "none of the benchmarks could be scored"),
    (["runs/mine", "tasks=blimp", "evaluate.mirror=runs"], "none of the benchmarks could be scored"),
    (["runs/mine", "tasks=pairs:gone.jsonl"], "pairs:gone.jsonl: no such file"),
    (["runs/mine", "tasks=blimp", "evaluate.tokens=900"], "'evaluate.tokens' is nothing that can be set for an evaluation"),
    (["runs/gone", "tasks=blimp"], "runs/gone: no such folder"),
    (["runs"], "no finished run there")])
def test_wrong_input_ends_in_one_line(cram, folder, arguments, said):
    result = cram("evaluate", *arguments)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1
    assert not (folder / "runs" / "mine" / "benchmarks").exists()


def test_an_unfinished_run_is_said_and_not_exported(cram, folder):
    from cram.budget import Budget
    from cram.ledger import Ledger
    ledger = Ledger(folder / "runs" / "mine" / "pretrain" / "ledger.jsonl", Budget.parse("100 steps"), "r", heartbeat=3600.0)
    ledger.count(steps=7)
    ledger.close("interrupted")
    result = cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl")
    assert result.code == 0 and "this run is NOT finished, 7 steps of 100 steps spent" in result.out
    refused = cram("export", "runs/mine", "out")
    assert refused.code == 2 and "this run is not finished" in refused.err and not (folder / "out").exists()


def test_results_of_the_same_model_add_up(cram, folder):
    (folder / "more.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl")
    assert cram("evaluate", "runs/mine", "tasks=pairs:more.jsonl").code == 0
    found = json.loads((folder / "runs/mine/benchmarks/benchmarks.json").read_text())["results"]
    assert list(found) == ["pairs:mine.jsonl", "pairs:more.jsonl"]


@pytest.mark.parametrize("content, said", [("{", "config.json: not JSON"), ("links", "its links lead nowhere")])
def test_a_broken_run_is_named(cram, folder, content, said):
    pretrain = folder / "runs" / "mine" / "pretrain"
    if content == "links":
        pretrain.rename(folder / "elsewhere")
        pretrain.symlink_to("nowhere")
    else:
        (pretrain / "config.json").write_text(content)
    result = cram("evaluate", "runs/mine", "tasks=pairs:mine.jsonl")
    assert result.code == 2 and said in result.err


@pytest.mark.parametrize("verb", ["generate", "fill", "evaluate"])
def test_text_that_is_no_text_is_refused(cram, folder, verb):
    result = cram(verb, "runs/mine", "tasks=\udcff" if verb == "evaluate" else "\udcff [MASK]")
    assert result.code == 2 and "not valid UTF-8" in result.err
