"""The model card of a run that was really trained: its header, and every number in it against the run's own files."""

import json

import pytest
import yaml

from cram.after.export import export
from cram.after.model_card import model_card
from cram.audit import read_ledger
from cram.errors import CramError
from cram.evaluate.subject import open_subject
from tests.cram.running import run as train

SCORES = {
    "held_out": {"loss": 3.25, "accuracy": 0.125, "bits_per_byte": 1.5}, "baselines": {"unigram": {"loss": 5.5}},
    "minimal_pairs": {"accuracy": 0.625, "low": 0.5, "high": 0.75, "pairs": 40, "phenomena": {}}, "unknown": [1],
    "benchmarks": {"piqa": {"metric": "accuracy", "score": 0.61, "low": 0.59, "high": 0.63, "examples": 1838, "chance": 0.5},
                   "lambada": {"skipped": "no file"}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """A causal run of twelve steps, with scores."""
    from cram.config import load

    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    for name, part in tiny.items():
        (folder / name).symlink_to(part)
    config = load("demo_gpt", ["budget=12 steps", "model.width=32", "model.heads=2", "train.sequence_length=32",
                               "train.batch_tokens=512", "train.validation_tokens=512", "train.threads=1",
                               "data.filters.languages=[en]", "data.identify_language=true", "telemetry.usd_per_hour=3600"])
    config.data.files = ["/home/somebody/secret.jsonl"]  # as a run with data.source=files has
    train(config, tiny, folder / "pretrain")
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "scores.json").write_text(json.dumps(SCORES))
    return folder


@pytest.fixture
def card(trained):
    return model_card(open_subject(trained, device="cpu"), "Qwen3ForCausalLM", "float32")


def test_the_header_is_what_the_hub_reads(card):
    empty, header, body = card.split("---\n", 2)
    assert empty == "" and yaml.safe_load(header) == {
        "license": "other", "license_name": "not-chosen", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["cram", "pretrained-from-scratch", "causal-language-model"], "language": ["en"]}
    assert body.startswith("\n# small\n")


def test_every_number_is_the_runs_own(card, trained, tiny):
    ledger, subject = read_ledger(trained / "pretrain" / "ledger.jsonl"), open_subject(trained, device="cpu")
    data = json.loads((tiny["data"] / "manifest.json").read_text())
    for expected in (
            f"{subject.model.parameter_count():,} parameters", f"| {ledger.seconds / 3600:.3f} hours |",
            "| tokens seen | 6,144 |", "| steps | 12 |", f"| {ledger.seconds:.2f} USD |", "| budget | 12 steps |",
            f"`{ledger.head}`", f"`{ledger.run_id}`",
            f"{data['splits']['train']['tokens']:,} |", f"`{data['tokenizer_sha256']}`",
            "| this model | 3.2500 | 0.1250 | 1.5000 |",
            "| unigram | 5.5000 |", "62.5% of 40 right (95% interval 50.0 to 75.0; chance is 50)",
            "| piqa | accuracy | 61.0 | 59.0 to 63.0 | 50.0 | 1,838 |",
            "| `model.width` | `32` |", "| device | CPU, 1 thread |",
            "not stated", "up to 32 tokens", 'pipeline("text-generation"', subject.identity["weights"], "Qwen3ForCausalLM"):
        assert expected in card, expected


def test_nothing_tells_where_things_lay_on_the_machine_of_the_run(card, trained):
    assert "/home/somebody" not in card and str(trained.parent) not in card and "lambada" not in card


def test_benchmarks_scored_later_count_when_they_are_of_these_weights(trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for part in trained.iterdir():
        (run / part.name).symlink_to(part)
    subject = open_subject(run, device="cpu")
    (run / "benchmarks").mkdir()
    later = {"identity": subject.identity, "results": {"copa": {"metric": "accuracy", "score": 0.75, "examples": 100}}}
    for identity, there in ((subject.identity, True), ({"weights": "others"}, False)):
        (run / "benchmarks" / "benchmarks.json").write_text(json.dumps(later | {"identity": identity}))
        card = model_card(subject, "x", "float32")
        assert ("| copa | accuracy | 75.0 |" in card) == there and "| piqa |" in card


def test_energy_is_told_where_it_was_measured(trained, monkeypatch):
    from cram.after import model_card as module

    def measured(path):
        ledger = read_ledger(path)
        ledger.energy_joules = 7.2e6
        return ledger
    assert "| energy | not measured |" in model_card(open_subject(trained, device="cpu"), "x", "float32")
    monkeypatch.setattr(module, "read_ledger", measured)
    assert "| energy | 2.000 kWh |" in model_card(open_subject(trained, device="cpu"), "x", "float32")


def test_what_a_run_lacks_is_said_to_be_unknown(trained, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("pretrain", "tokenizer"):
        (tmp_path / "bare" / name).symlink_to(trained / name)
    card = model_card(open_subject(tmp_path / "bare", device="cpu"), "x", "float32")
    assert "Not evaluated." in card and "## Training text\n\nNot recorded" in card


def test_an_edited_ledger_stops_the_export(trained, tmp_path):
    for name in ("tokenizer", "data", "text"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(trained / name)
    copy = tmp_path / "run" / "pretrain"
    copy.mkdir()
    for name in ("config.json", "checkpoints", "ledger.head"):
        (copy / name).symlink_to(trained / "pretrain" / name)
    rows = (trained / "pretrain" / "ledger.jsonl").read_text()
    (copy / "ledger.jsonl").write_text(rows.replace('"steps": 12', '"steps": 13'))
    with pytest.raises(CramError, match="was edited"):
        export(tmp_path / "run", tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_trained_weights_are_exported_with_their_card(trained, tmp_path):
    said = []
    assert export(trained, tmp_path / "out", said.append).name == "Qwen3ForCausalLM"
    assert (tmp_path / "out" / "README.md").read_text() == model_card(
        open_subject(trained, device="cpu"), "Qwen3ForCausalLM", "float32")
    assert "logits within" in said[-1]


def test_a_dataset_of_the_hub_is_named_in_the_header(trained):
    from cram.after.model_card import _data, _header
    source = {"source": "hub", "dataset": "someone/texts", "revision": None, "licence": "odc-by"}
    header = yaml.safe_load(_header(open_subject(trained, device="cpu").config, source, False).strip("-\n"))
    assert header["datasets"] == ["someone/texts"] and header["pipeline_tag"] == "fill-mask"
    assert "Licences, as the sources state them: odc-by." in _data(source, {"splits": {}})
