"""Our models inside lm-evaluation-harness: from Python, from its command line, and beside its own HFLM."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance

from cram import schema
from cram.after.harness import CramLM
from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.model import Transformer
from tests.cram.evaluate import reference_models as reference


def instances(kind, *arguments):
    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


def ours(kind="causal", row=32):
    tokenizer = reference.byte_bpe()
    torch.manual_seed(0)
    model = Transformer(schema.Model(layers=1, width=32, heads=2, zero_init=False, init_std=0.3), tokenizer.get_vocab_size(),
                        kind != "masked")
    return Subject("tiny", model, tokenizer, reference.IDS, kind, row, "cpu", {}, ".")


@pytest.fixture(scope="module")
def both():
    """The harness's own adapter and ours around one GPT-2."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = reference.gpt2(row=48)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", pad_token="[PAD]")
    subject = reference.subject_of(model, tokenizer, "causal", 48, opening=[])
    subject.special = subject.special | {"cls": 3}
    return HFLM(pretrained=model, tokenizer=fast, device="cpu", max_length=48, batch_size=2), CramLM(subject)


def test_log_likelihoods_equal_the_harness(both, capsys):
    long = " ".join(reference.TEXTS[:3])
    requests = instances("loglikelihood", ("", "The cats walk."), ("The cats ", "walk."), (long, " and a dog"),
                         ("A dog", " barked"))
    theirs, cram = (adapter.loglikelihood(requests, disable_tqdm=True) for adapter in both)
    assert [score for score, _ in cram] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in cram] == [greedy for _, greedy in theirs]
    assert "1 of 4 texts are longer than the 48 tokens" in capsys.readouterr().out


def test_rolling_log_likelihoods_equal_the_harness(both):
    requests = instances("loglikelihood_rolling", ("A dog.",), (" ".join(reference.TEXTS),), (reference.TEXTS[2],))
    theirs, cram = (adapter.loglikelihood_rolling(requests, disable_tqdm=True) for adapter in both)
    assert cram == pytest.approx(theirs, abs=1e-3)


def test_generation_equals_the_harness(both):
    """Where the model writes none of the special tokens that ours never writes."""
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    contexts = [text[:30] for text in reference.TEXTS]
    requests = instances("generate_until", *((context, dict(options)) for context in contexts))
    theirs, cram = (adapter.generate_until(requests, disable_tqdm=True) for adapter in both)
    tokenizer = both[1].subject.tokenizer
    for expected, found in zip(theirs, cram):
        assert found == expected and len(tokenizer.encode(found).ids) > 0


def test_generation_stops_at_the_first_stop_text():
    adapter = CramLM(ours())

    def generate(**options):
        return adapter.generate_until(instances("generate_until", ("The cats", {"max_gen_toks": 20, **options})))[0]

    whole = generate()
    stop = whole[len(whole) // 2:len(whole) // 2 + 2]
    assert whole and generate(until=["never there", stop]) == generate(until=stop) == whole[:whole.index(stop)]
    with pytest.raises(CramError, match="temperature=0"):
        adapter.generate_until(instances("generate_until", ("a", {"temperature": 0.7})))


def test_a_hybrid_model_is_scored_as_a_causal_one():
    requests = instances("loglikelihood", ("The cats", " walk."), ("", "A dog"))
    assert CramLM(ours("hybrid")).loglikelihood(requests) == CramLM(ours()).loglikelihood(requests)


def test_a_masked_model_is_refused():
    with pytest.raises(CramError, match="scores causal and hybrid models, and this one is masked; .* tasks=blimp"):
        CramLM(ours("masked"))


def test_the_harness_evaluates_a_subject(tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [{"good": "The cats walk.", "bad": "The cats walks."}, {"good": "A dog barked.", "bad": "Dog a barked."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "pairs", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path)},
            "doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[good, bad]}}", "metric_list": [{"metric": "acc"}]}
    adapter = CramLM(ours())
    found = lm_eval.simple_evaluate(adapter, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    scores = [score for score, _ in adapter.loglikelihood(instances(
        "loglikelihood", *(("", f" {row[side]}") for row in rows for side in ("good", "bad"))))]
    assert found["results"]["pairs"]["acc,none"] == ((scores[0] >= scores[1]) + (scores[2] >= scores[3])) / 2
    assert found["config"]["model_name"] == "tiny"


# --- the command line -----------------------------------------------------------------------------------------------

def test_the_command_line_hands_on_to_the_harness(cram, monkeypatch, tmp_path):
    """What lm-eval's own command line gets, up to the evaluation."""
    import lm_eval
    from lm_eval.config.evaluate_config import EvaluatorConfig

    (tmp_path / "run").mkdir()
    seen = {}
    monkeypatch.setattr(EvaluatorConfig, "process_tasks", lambda self, metadata=None: None)
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **options: seen.update(options))
    result = cram("harness", tmp_path / "run", "--tasks", "blimp", "--limit", "2", "--num_fewshot", "1")
    assert result.code == 0, result.err
    assert seen["model"] == "cram" and seen["model_args"] == {"run": str(tmp_path / "run")}
    assert seen["tasks"] == ["blimp"] and (seen["limit"], seen["num_fewshot"]) == (2, 1)


def test_a_masked_run_is_refused_in_one_line(cram, monkeypatch, tmp_path):
    import lm_eval
    from lm_eval.config.evaluate_config import EvaluatorConfig

    monkeypatch.setattr(EvaluatorConfig, "process_tasks", lambda self, metadata=None: None)
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **options: CramLM(ours("masked")))
    result = cram("harness", tmp_path, "--tasks", "blimp")
    assert result.code == 2 and result.err.splitlines()[-1].startswith("error: tiny: the harness scores causal and hybrid models")


def test_what_the_command_line_refuses(cram, tmp_path):
    for arguments, message in [
            ((tmp_path,), "no --tasks; give some"), ((tmp_path, "--tasks", "blimp", "--model", "hf"), "leave --model away"),
            ((tmp_path, "--tasks", "blimp", "--model_args=a=b"), "leave --model_args away"), ((), "required: run"),
            ((tmp_path / "a,b", "--tasks", "blimp"), "commas, spaces or equals signs")]:
        result = cram("harness", *arguments)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_without_the_harness_the_extra_is_named(cram, monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest))
    result = cram("harness", tmp_path, "--tasks", "blimp")
    assert result.code == 2 and "pip install 'cram-lm[eval]'" in result.err
