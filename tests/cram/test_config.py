"""Configurations: layering, types, places, refusals, and the shipped files."""

import dataclasses
import json

import pytest

from cram import config as configs
from cram.config import KEYS, from_dict, load, load_with_places, lookup, to_dict
from cram.errors import CramError
from cram.explain import differences, explain
from cram.schema import Config

SHIPPED = ("demo", "demo_gpt", "laptop", "laptop_gpt", "bert_day", "gpt_day", "cramming2022")


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def refusal(path, *overrides):
    with pytest.raises(CramError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_under_their_own_name(name):
    assert load(name).name == name
    assert load(f"configs/{name}.yaml") == load(name)


def test_every_key_has_a_meaning():
    assert all(key.help.strip() for key in KEYS.values())
    assert len(KEYS) == sum(1 for _ in json.dumps(to_dict(Config())).split('": ')) - 1 - len(configs.SECTIONS)


def test_defaults_then_base_then_file_then_command_line(tmp_path):
    write(tmp_path, "base.yaml", "seed: 1\nmodel:\n  layers: 3\n  width: 96\n")
    path = write(tmp_path, "top.yaml", "extends: base.yaml\nmodel:\n  layers: 4\n")
    config, places = load_with_places(path, ["train.threads=2", "--model.heads=4"])
    assert (config.seed, config.model.layers, config.model.width, config.model.heads) == (1, 4, 96, 4)
    assert config.train.threads == 2 and config.train.batch_tokens == Config().train.batch_tokens
    assert places == {"seed": f"{tmp_path}/base.yaml:1", "model.layers": f"{path}:3", "model.width": f"{tmp_path}/base.yaml:4",
                      "train.threads": "command line", "model.heads": "command line"}


def test_extends_is_relative_to_the_file_and_cycles_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "base.yaml", "seed: 5\n")
    assert load(write(tmp_path / "sub", "a.yaml", "extends: ../base.yaml\n")).seed == 5
    write(tmp_path, "x.yaml", "extends: y.yaml\n")
    write(tmp_path, "y.yaml", "extends: x.yaml\n")
    assert "extends itself through x.yaml -> y.yaml" in refusal(tmp_path / "x.yaml")
    assert "a.yaml:2: extends: no file" in refusal(write(tmp_path, "a.yaml", "seed: 1\nextends: gone.yaml\n"))


def test_values_follow_the_declared_type_not_yaml_guesses(tmp_path):
    text = ("name: 1e3\nbudget: 1_000 steps\noptimizer:\n  lr: 1e-3\n  clip: null\ntrain:\n  compile: on\n"
            "  batch_tokens: 1.28e4\n  deterministic: False\ndata:\n  packages: [on, 1.0]\n  text_field: null_\n")
    config = load(write(tmp_path, "a.yaml", text.replace("1_000", "1000")))
    assert config.name == "1e3" and config.optimizer.lr == 0.001 and config.optimizer.clip is None
    assert config.train.compile == "on" and config.train.batch_tokens == 12800 and config.train.deterministic is False
    assert config.data.packages == ["on", "1.0"]
    assert isinstance(config.train.batch_tokens, int) and isinstance(load("demo", ["schedule.start=1"]).schedule.start, float)


@pytest.mark.parametrize("text, expected", [
    ("a.yaml|trian:\n  threads: 2\n", "a.yaml:1: unknown key 'trian'; did you mean 'train'?"),
    ("a.yaml|seed: 1\ntrain:\n  thread: 2\n", "a.yaml:3: unknown key 'train.thread'; did you mean 'train.threads'?"),
    ("a.yaml|train:\n  lr: 2\n", "a.yaml:2: unknown key 'train.lr'; did you mean 'optimizer.lr'?"),
    ("a.yaml|model:\n  layers: many\n", "a.yaml:2: model.layers: expected a whole number, got 'many'"),
    ("a.yaml|model:\n  layers: 2.5\n", "a.yaml:2: model.layers: expected a whole number, got '2.5'"),
    ("a.yaml|model:\n  layers: [2]\n", "a.yaml:2: model.layers: expected a whole number, got a list"),
    ("a.yaml|model:\n  layers:\n", "a.yaml:2: model.layers: expected a whole number, got nothing (null)"),
    ("a.yaml|optimizer:\n  lr: nan\n", "a.yaml:2: optimizer.lr: expected a number, got 'nan'"),
    ("a.yaml|model:\n  tied: yes\n", "a.yaml:2: model.tied: expected true or false, got 'yes'"),
    ("a.yaml|model:\n  mlp: gleu\n", "a.yaml:2: model.mlp: expected one of gelu, geglu, swiglu, relu2, got 'gleu'"),
    ("a.yaml|model: 3\n", "a.yaml:1: model: is a section with keys of its own, got '3'"),
    ("a.yaml|seed: 1\nseed: 2\n", "a.yaml:2: seed was already set in line 1; keep one"),
    ("a.yaml|- seed\n", "a.yaml:1: expected 'key: value' lines, got a list"),
    ("a.yaml|seed: [1\n", "not valid YAML"),
])
def test_refusals_name_file_line_and_remedy(tmp_path, text, expected):
    name, text = text.split("|")
    message = refusal(write(tmp_path, name, text))
    assert expected in message and str(tmp_path) in message


def test_files_that_are_no_utf8_yaml(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "not UTF-8 text (byte 6)" in refusal(tmp_path / "a.yaml")
    assert load(write(tmp_path, "empty.yaml", "# nothing\n")) == Config()


@pytest.mark.parametrize("overrides, expected", [
    (["model.width=100", "model.heads=3"], "command line: model.width 100 is not a multiple of model.heads 3"),
    (["model.width=60", "model.heads=12"], "needs an even head dimension"),
    (["model.kv_heads=3"], "command line: model.heads 4 is not a multiple of model.kv_heads 3"),
    (["train.batch_tokens=1000"], "not a multiple of train.sequence_length 128; nearest: 1024"),
    (["train.micro_batch_tokens=1536"], "is not a multiple of train.micro_batch_tokens 1536"),
    (["train.batch_ramp=0.5"], "train.batch_ramp needs train.batch_start_tokens"),
    (["train.batch_start_tokens=128"], "only used with train.batch_ramp"),
    (["train.batch_ramp=0.5", "train.batch_start_tokens=8192"], "train.batch_start_tokens 8192 is more than train.batch_tokens"),
    (["train.checkpoint_every=5", "train.checkpoint_every_steps=5"], "exclude each other"),
    (["train.precision=fp16", "train.device=cpu"], "needs a CUDA card"),
    (["train.replay=/nowhere/progress.f64"], "no file /nowhere/progress.f64"),
    (["train.validation_tokens=64"], "less than one row"),
    (["train.validate_every=2"], "at most 1"),
    (["tokenizer.sample_bytes=20000000000"], "over 10,000,000,000: the trainer counts pairs in 32 bits"),
    (["data.filters.languages=[en]"], "needs data.identify_language=true"),
    (["data.packing=best-fit", "model.document_mask=false"], "use data.packing=stream"),
    (["data.decontaminate=[nowhere]"], "no file or folder nowhere"),
    (["data.decontaminate=[configs]", "data.filters.max_contaminated_ngrams=null"], "does nothing with"),
    (["data.part_bytes=3000000000"], "over 1,000,000,000"),
    (["data.filters.order=[min_char]"], "data.filters.order: 'min_char' is no rule; did you mean min_chars"),
    (["tokenizer.vocab_size=100"], "below 261"),
    (["data.source=hub"], "data.source=hub needs data.dataset"),
    (["data.source=files"], "data.source=files needs data.files"),
    (["data.files=a.txt"], "data.files is only read with data.source=files"),
    (["data.validation_fraction=1"], "data.validation_fraction must lie between 0 and 1, both excluded, got 1.0"),
    (["objective.mask_rate=0"], "objective.mask_rate must lie between 0 and 1, both excluded"),
    (["objective.random_token_fraction=0.3"], "together exceed 1"),
    (["objective.mask_rate_end=0.1", "objective.mask_rate_levels=1"], "must be at least 2"),
    (["evaluate.blanks=[no blank]"], "has no [MASK] to fill"),
    (["schedule.warmup=0.6"], "together exceed 1"),
    (["schedule.decay=0"], "use schedule.type=constant"),
    (["schedule.type=triangle", "schedule.warmup=1"], "no room to fall"),
    (["optimizer.beta2=1"], "at least 0 and less than 1"),
    (["optimizer.lr=0"], "optimizer.lr must be more than 0"),
    (["telemetry.log_every=0"], "must be at least 1"),
    (["seed=-1"], "must not be negative"),
    (["budget=24"], "command line: budget '24': has no unit"),
    (["budget=0s"], "must be finite and more than zero"),
    (["budget=3 parsecs"], "not understood"),
    (["name=a/b"], "cannot be a folder's name"),
    (["name=artifacts"], "cannot be a folder's name"),
    (["train.threads=1025"], "train.threads must lie between 1 and 1,024"),
    (["train.threads=0"], "train.threads must lie between 1 and 1,024"),
    (["train.spike_window=7"], "train.spike_window must lie between 8 and 100,000"),
    (["train.spike_window=100001"], "train.spike_window must lie between 8 and 100,000"),
    (["telemetry.heartbeat=3601"], "telemetry.heartbeat must be more than 0 and at most 3,600"),
    (["telemetry.heartbeat=0"], "telemetry.heartbeat must be more than 0 and at most 3,600"),
    (["objective.mask_rate_levels=101"], "objective.mask_rate_levels must lie between 1 and 100"),
    (["train.reserve=180"], "command line: train.reserve 180 s leaves nothing of budget=3m; lower it"),
    (["objective.type=causal", "objective.mask_rate=0.2"], "objective.mask_rate=0.2 does nothing: only read with "
     "objective.type=masked or hybrid; add objective.type=masked, or leave it out"),
    (["objective.type=causal", "objective.mask_rate_end=0.2"], "objective.mask_rate_end=0.2 does nothing"),
    (["objective.type=causal", "objective.mask_rate_levels=2"], "objective.mask_rate_levels=2 does nothing"),
    (["objective.causal_share=0.2"], "command line: objective.causal_share=0.2 does nothing: only read with "
     "objective.type=hybrid"),
    (["distill.weight=0.2"], "distill.weight=0.2 does nothing: only read with distill.teacher"),
    (["distill.temperature=2"], "distill.temperature=2.0 does nothing"),
    (["optimizer.type=adamw", "optimizer.muon_lr=0.1"], "optimizer.muon_lr=0.1 does nothing"),
    (["optimizer.type=adalomo", "optimizer.momentum=0.9"], "optimizer.momentum=0.9 does nothing"),
    (["optimizer.weight_decay=0", "optimizer.cautious=true"], "optimizer.cautious=true does nothing: only read with "
     "optimizer.weight_decay above 0"),
    (["model=3"], "model is a section; set one of its keys"),
    (["model.layers"], "expected key=value"),
    (["data.packages=[numpy"], "expected a list such as"),
])
def test_impossible_values_and_combinations(overrides, expected):
    assert expected in refusal("demo", *overrides)


@pytest.mark.parametrize("overrides", [
    ["train.reserve=180", "budget=181s"], ["train.reserve=180", "budget=9 steps"], ["train.threads=1024"],
    ["train.spike_window=8"], ["train.spike_window=100000"], ["telemetry.heartbeat=3600"], ["objective.mask_rate_levels=100"],
    ["objective.type=hybrid", "objective.mask_rate=0.2", "objective.causal_share=0.1"],
    ["optimizer.weight_decay=0", "optimizer.cautious=false"]])
def test_what_lies_just_inside_is_let_through(overrides):
    load("demo", overrides)


def test_a_file_may_set_what_this_run_does_not_read(tmp_path):
    """demo_gpt inherits demo's mask rate."""
    path = write(tmp_path, "a.yaml", "objective:\n  causal_share: 0.3\ndistill:\n  weight: 0.4\n")
    assert load(path).objective.causal_share == 0.3


def test_the_command_line_is_blamed_before_a_file(tmp_path):
    path = write(tmp_path, "a.yaml", "model:\n  width: 96\n  heads: 4\n")
    assert refusal(path, "model.heads=5").startswith("command line: model.width 96 is not a multiple of model.heads 5")
    assert refusal(write(tmp_path, "b.yaml", "model:\n  width: 97\n  heads: 4\n")).startswith(f"{tmp_path}/b.yaml:2: ")


def test_unknown_configuration_suggests_the_nearest():
    assert "did you mean 'bert_day'?" in refusal("bertday")
    assert "one that is shipped: bert_day, " in refusal("/nowhere/zzz.yaml")


def test_a_file_named_like_a_shipped_configuration_is_taken_by_its_path(tmp_path, monkeypatch):
    write(tmp_path, "demo.yaml", "name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert load("demo").name == "demo" and load("demo.yaml").name == "mine" and load("./demo.yaml").name == "mine"


def test_dictionary_round_trip_through_json():
    config = load("cramming2022", ["evaluate.blanks=['a [MASK]', '[MASK] b']", "evaluate.prompts=[]"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(CramError, match="unknown key 'model.depth'"):
        from_dict({"model": {"depth": 3}})


@pytest.mark.parametrize("name", SHIPPED)
def test_explained_configuration_loads_again(tmp_path, name):
    config = load(name, ["evaluate.prompts=['a: b # c', 'null', \"d's\"]", "data.mirror=null"])
    text = explain(config)
    assert load(write(tmp_path, "again.yaml", text)) == config
    marked = [line for line in text.splitlines() if "# * (default" in line]
    assert len(marked) == len(differences(Config(), config))
    assert all(KEYS[key].help in text for key in KEYS)


def test_cramming_recipe_numbers():
    """Geiping & Goldstein 2022; the parameter count follows from these."""
    config = load("cramming2022")
    m, t, o = config.model, config.train, config.optimizer
    gated = {"geglu": 3}[m.mlp]
    norm = 2 * m.width                                               # gain and bias
    layer = 4 * m.width**2 + gated * m.width * m.mlp_width + 2 * norm
    scale = 1                                                        # of the sinusoidal positions
    total = m.layers * layer + config.tokenizer.vocab_size * m.width + 2 * norm + scale
    assert total == 119_589_889
    assert (t.batch_tokens // t.sequence_length, t.batch_ramp, o.lr, o.beta2, o.clip) == (8192, 0.6, 1e-3, 0.98, 0.5)
    assert (config.schedule.type, config.schedule.warmup, config.schedule.start, config.objective.mask_rate) == (
        "triangle", 0.75, 0.25, 0.25)


def test_day_configurations_share_their_data_and_differ_in_the_objective():
    changed = {key for key, *_ in differences(load("bert_day"), load("gpt_day"))}
    assert {key for key in changed if key.startswith(("data.", "tokenizer.", "model."))} == {"model.tied", "model.qk_norm"}
    changed = {key for key, *_ in differences(load("demo"), load("demo_gpt"))}
    assert changed == {"name", "objective.type", "model.tied", "model.qk_norm"}


def test_lookup_reaches_every_key():
    assert all(lookup(Config(), key) == leaf.default for key, leaf in KEYS.items())
    assert dataclasses.is_dataclass(Config().data.filters)


def test_layers_and_shipped_bases(tmp_path):
    """Later files over earlier ones; a file may extend what is shipped, so that a pair can be saved."""
    laid = load(["demo", "filters/gopher"], ["data.filters.min_words=7"])
    assert laid.name == "demo" and laid.data.filters.max_words == 100_000 and laid.data.filters.min_words == 7
    (tmp_path / "mine.yaml").write_text("extends: [demo, filters/gopher]\ndata:\n  filters:\n    min_words: 7\n")
    assert load(tmp_path / "mine.yaml") == laid
    (tmp_path / "mine.yaml").write_text("extends: filters/gofer\n")
    with pytest.raises(CramError, match=r"mine.yaml:1: extends: no file .*or the name of a shipped configuration: .*filters/gopher"):
        load(tmp_path / "mine.yaml")
