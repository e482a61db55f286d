"""Questions as files: every shipped one is sound in every size, and each fault is refused with its line."""

import pytest
import yaml

from cram.config import load
from cram.errors import CramError
from cram.insight.ablate.arms import times
from cram.insight.ablate.question import SIZES, locate, of_recipes, read, shipped
from cram.budget import Budget

GOOD = """\
question: Is wider better?
source: nobody
baseline: demo_gpt
settings:
  model.layers: 1
variants:
  plain: {}
  wide:
    model: {width: 256}
  listed: [optimizer.type=adamw, filters/none]
budget: 100 steps
seeds: 2
metric: bits_per_byte
expect: yes
tiny:
  budget: 10 steps
  settings: {model.width: 32, model.heads: 2}
  variants: {plain: {}, deep: {model.layers: 2}}
"""
PLAIN = GOOD.replace(", filters/none", "").replace("bits_per_byte", "loss")      # arms of the same text


def written(tmp_path, text, name="wide.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_question_is_sound_in_every_size(path):
    for size in ("", *SIZES):
        question = read(path, size)
        assert len(question.arms) >= 2 and question.seeds >= 2 and question.question.endswith("?")
        assert question.ladder or not question.metric.learns or size == "card"
        if size != "card":
            assert question.baseline.config.train.threads == 1, "a question for the CPU keeps to one core a run"


@pytest.mark.parametrize("path", of_recipes(), ids=lambda path: path.stem)
def test_the_questions_by_which_recipes_are_searched_are_sound_and_have_names(path):
    question = read(locate(f"recipe/{path.stem}"))
    assert len(question.arms) >= 3 and question.seeds >= 2 and question.question.endswith("?") and question.ladder
    assert locate(path.stem).resolve() == path.resolve()


def test_there_are_questions_about_all_of_the_recipe():
    assert {"attention", "positions", "normalisation", "activation", "mask_rate", "objective", "hybrid", "optimizer",
            "schedule", "batch_ramp", "sequence_schedule", "packing", "filters", "duplicates", "vocabulary", "shape",
            "recomputation", "precision", "repetition", "planted"} <= {path.stem for path in shipped()}


def test_a_file_says_what_is_run(tmp_path):
    question = read(written(tmp_path, GOOD.replace("filters/none", "train.threads=3").replace("bits_per_byte", "loss")))
    assert [arm.name for arm in question.arms] == ["plain", "wide", "listed"] and question.label == "wide"
    assert question.arms[1].settings == ("model.width=256",) and question.arms[1].config.model.layers == 1
    assert question.arms[2].config.optimizer.type == "adamw" and question.ladder == (0.5, 1.0, 2.0)


def test_a_size_replaces_and_its_settings_are_laid_over(tmp_path):
    question = read(written(tmp_path, PLAIN), "tiny")
    assert question.label == "wide-tiny" and question.budget.text == "10 steps" and question.seeds == 2
    assert [arm.name for arm in question.arms] == ["plain", "deep"]
    assert question.baseline.config.model.layers == 1 and question.arms[1].config.model.layers == 2
    assert {arm.config.model.width for arm in question.arms} == {32}


def test_the_command_line_replaces_budget_and_seeds_and_sets_keys_of_all_arms(tmp_path):
    path = written(tmp_path, PLAIN)
    question = read(path, "", "200 steps", 5, ["schedule.warmup=0.2"])
    assert (question.budget.amount, question.seeds) == (200, 5)
    assert {arm.config.schedule.warmup for arm in question.arms} == {0.2}
    with pytest.raises(CramError, match=r"command line: model.width is what variant 'wide' sets .*wide.yaml:8"):
        read(path, "", None, None, ["model.width=64"])


def test_a_variant_may_have_its_own_budget(tmp_path):
    text = PLAIN.replace("    model: {width: 256}", "    budget: 2")
    twice = read(written(tmp_path, text)).arms[1]
    assert (twice.factor, twice.budget.text, twice.settings) == (2.0, "200 steps", ())
    told = read(written(tmp_path, text.replace("budget: 2", "budget: 150 steps"))).arms[1]
    assert told.factor == 1.5


@pytest.mark.parametrize("text, factor, told", [("1.2e12 flops", 0.5, "6e11 flops"), ("2e6 tokens", 2.8, "5.6e6 tokens"),
                                                ("300 steps", 0.35, "105 steps"), ("2m", 0.5, "60s"),
                                                ("1e10 flops", 1 / 3, "3.333333333e9 flops")])
def test_budgets_are_multiplied_in_words_that_can_be_typed(text, factor, told):
    assert times(Budget.parse(text), factor).text == told
    assert times(Budget.parse(text), factor).amount == pytest.approx(Budget.parse(text).amount * factor, rel=1e-9)


FAULTS = [
    ("question: Is wider better?\n", "", r"wide.yaml:1: 'question:' is missing"),
    ("seeds: 2", "sedes: 2", r"wide.yaml:12: unknown key 'sedes'; did you mean 'seeds'"),
    ("seeds: 2", "seeds: two", r"wide.yaml:12: seeds: expected a whole number, got 'two'"),
    ("seeds: 2", "seeds: 0", r"wide.yaml:12: seeds must be at least 1"),
    ("budget: 100 steps", "budget: 100", r"wide.yaml:11: budget '100': has no unit"),
    ("metric: bits_per_byte", "metric: bleu", r"wide.yaml:13: metric: 'bleu' is none of loss"),
    ("metric: bits_per_byte", "metric: loss", r"wide.yaml:10: variant 'listed': metric loss: data.* changes the tokens"),
    ("metric: bits_per_byte", "metric: masked_loss", r"wide.yaml:7: variant 'plain': metric masked_loss: a causal model has"),
    ("baseline: demo_gpt", "baseline: demo_gtp", r"demo_gtp: no such configuration; did you mean 'demo_gpt'"),
    ("model: {width: 256}", "model: {widht: 256}", r"wide.yaml:9: variant 'wide': unknown key 'model.widht'"),
    ("model: {width: 256}", "model: {width: big}", r"wide.yaml:9: variant 'wide': model.width: expected a whole number"),
    ("model: {width: 256}", "model: {width: 130}", r"wide.yaml:9: variant 'wide': model.width 130 is not a multiple"),
    ("model: {width: 256}", "model: {width: 128}", r"wide.yaml:8: variant 'wide' is the same as the baseline 'plain'"),
    ("model: {width: 256}", "optimizer.fused_backward: true",
     r"wide.yaml:9: variant 'wide': optimizer.fused_backward without AdaLomo"),
    ("model: {width: 256}", "objective.type: masked", r"wide.yaml:8: variant 'wide': metric bits_per_byte: a masked model"),
    ("model: {width: 256}", "tokenizer.type: unigram", r"wide.yaml:8: variant 'wide': metric bits_per_byte: tokens of"),
    ("model: {width: 256}", "budget: 3e9 flops", r"wide.yaml:9: budget: '3e9 flops' is not of the kind"),
    ("model: {width: 256}", "budget: 0", r"wide.yaml:9: budget: a factor must be more than 0"),
    ("  plain: {}\n  wide", "  plain: {train.threads: 1}\n  wide", r"wide.yaml:6: variants: one arm, and only one, must be"),
    ("  plain: {}\n  wide", "  plain: {}\n  also: {}\n  wide", r"one arm, and only one, .* here plain, also has none"),
    ("  plain: {}\n  wide", "  plain: {}\n  plain: {seed: 2}\n  wide", r"wide.yaml:8: variants.plain stands there twice"),
    ("  wide:", "  wide one:", r"wide.yaml:8: variant 'wide one' becomes a folder's name"),
    ("expect: yes", "expect: yes\nladder: [1]", r"wide.yaml:15: ladder: expected factors"),
    ("expect: yes", "expect: yes\nladder: [0.5, x]", r"wide.yaml:15: ladder: expected a number, got 'x'"),
    ("expect: yes", "expect: yes\ncorpus: dirty", r"wide.yaml:15: corpus: expected one of clean, web"),
    ("  budget: 10 steps", "  source: me", r"wide.yaml:16: tiny.source: cannot be set for a size"),
    ("filters/none", "filters/nun", r"filters/nun: no such configuration"),
    ("  model.layers: 1", "  model.layers: 0", r"wide.yaml:5: variant 'plain': model.layers"),
    ("  model.layers: 1", "  seed: 3", r"wide.yaml:5: seed: cannot be a setting of all arms; seeds: .or --seeds."),
    ("  model.layers: 1", "  budget: 3m", r"wide.yaml:5: budget: cannot be a setting of all arms; write budget:"),
    ("model: {width: 256}", "seed: 5", r"wide.yaml:9: variant 'wide': seed is set by the command for all arms"),
    ("  model.layers: 1", "\tmodel.layers: 1", r"wide.yaml:5: not valid YAML"),
]


@pytest.mark.parametrize("old, new, told", FAULTS, ids=[told[:60] for *_, told in FAULTS])
def test_a_fault_is_refused_with_its_line(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(CramError, match=told):
        read(written(tmp_path, GOOD.replace(old, new)))


def test_text_that_arms_change_needs_held_out_text_of_its_own(tmp_path):
    with pytest.raises(CramError, match="listed': metric bits_per_byte: data.filters.* changes the held-out text as well"):
        read(written(tmp_path, GOOD))
    assert read(written(tmp_path, GOOD + "corpus: clean\n")).corpus == "clean"


def test_every_fault_of_the_command_is_one_line(tmp_path, cram):
    path = written(tmp_path, GOOD + "corpus: clean\n")
    for arguments, told in ((("optimiser",), "did you mean 'optimizer'"), ((path, "--card"), "has no section 'card:'"),
                            ((path, "--jobs", "2"), "every run would take all cores; add train.threads=1"),
                            ((path, "--jobs", "0"), "at least 1"), ((path, "--seeds", "0"), "seeds must be at least 1"),
                            ((path, "--budget", "60s", "--jobs", "2", "train.threads=1"), "would slow each other"),
                            ((path, "model.width"), "expected key=value"), ((path, "out=x"), "out: cannot be a setting"),
                            ((path, "name=x"), "runs are named after their arms"), (("render",), "needs a record")):
        result = cram("ablate", *arguments)
        assert (result.code, result.err.count("\n")) == (2, 1) and told in result.err, result.err


def test_the_list_names_every_question_with_its_cost(cram):
    result = cram("ablate")
    assert result.code == 0
    for path in shipped():
        assert f"{path.stem} " in result.out and yaml.safe_load(path.read_text())["question"] in result.out
    assert "runs" in result.out and "about" in result.out


def test_names_are_found_as_configurations_are(root):
    assert locate("planted") == locate("ablations/planted") == locate("configs/ablations/planted.yaml")
    with pytest.raises(CramError, match="no such question"):
        locate("sizes/tiny")


def test_sizes_are_configurations_like_others():
    for size in ("minutes", "tiny"):
        assert load(["demo", f"ablations/sizes/{size}"]).train.threads == 1


def test_a_file_whose_name_cannot_be_a_folders_is_refused(tmp_path):
    for name in ("is it.yaml", "artifacts.yaml"):
        with pytest.raises(CramError, match="the file's name becomes a folder's"):
            read(written(tmp_path, PLAIN, name))
