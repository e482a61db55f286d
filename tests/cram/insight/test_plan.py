"""The planner's arithmetic on made-up costs, memory against measured tensors, cards, text, refusals; real runs marked slow."""

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.bench.step import make_batch
from cram.budget import Budget
from cram.config import load
from cram.device import PEAK_FLOPS, choose_device
from cram.errors import CramError
from cram.insight.plan.cards import CARDS, MFU, find_card
from cram.insight.plan.costs import Costs, of_card
from cram.insight.plan.expected import expected_loss
from cram.insight.plan.measuring import LOOP_SECONDS, measure, typical
from cram.insight.plan.memory import memory
from cram.insight.plan.plan import make_plan, spend
from cram.insight.plan.text import Text, find_text
from cram.insight.plan.walk import Outline
from cram.insight.scale.grid import recipe
from cram.learner import Learner
from cram.parallel import World
from cram.shapes import coming_shapes
from tests.cram.running import restore_torch  # noqa: F401

TEXT = Text(100_000, 5_000, "made up", True, {"data": 200_000})
SMALL = ("model.width=32", "model.heads=2", "train.sequence_length=32", "train.batch_tokens=512", "train.threads=1",
         "tokenizer.vocab_size=300")


def costs(step=0.1, update=0.02, setup=1.0, save=0.05, validation=0.4, micro=512, memory_bytes=2**40):
    return Costs("made up", "cpu", True, torch.float32, micro, {}, 1.0, update, setup, 0.0, save, validation,
                 memory_bytes=memory_bytes), step


def situation(budget, overrides=(), **more):
    """(configuration, outline, costs): a step of 512 tokens takes ``step`` seconds, by its FLOPs, and ``update``."""
    config = load("demo", [*SMALL, f"budget={budget}", *overrides])
    made, step = costs(**more)
    outline = Outline(config)
    return config, outline, replace(made, rate=512 * outline.flops_per_token(coming_shapes(0.0, config, 512)[0], False) / step)


def spend_of(budget, text=TEXT, **more):
    config, outline, made = situation(budget, **more)
    budget = Budget.parse(budget)
    return spend(config, outline, made, text, budget, budget.amount)


def plan_of(budget, text=TEXT, free=10**15, **more):
    config, outline, made = situation(budget, **more)
    return make_plan(config, outline, made, text, free)


# ---- arithmetic


@settings(deadline=None, max_examples=40)
@given(st.floats(20, 5000), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_a_time_budget_is_kept_and_nearly_used(seconds, step, save):
    legs, account = spend_of(f"{seconds:.3f}s", step=step, save=save)
    assert sum(leg.tokens for leg in legs) == 512 * sum(leg.steps for leg in legs) and sum(account.values()) <= seconds
    reserve = 2 * save + min(0.2 + 0.004 * seconds, 10.0)
    assert sum(account.values()) > seconds - reserve - 3 * (step + 0.02) - 0.02 * seconds


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 3000), st.floats(0.01, 0.5))
def test_wall_time_of_a_step_budget_is_the_sum_of_what_is_paid(steps, step):
    legs, account = spend_of(f"{steps} steps", step=step)
    assert sum(leg.steps for leg in legs) == steps and account["steps"] == pytest.approx(steps * (step + 0.02))
    look = 9 * 0.4 * 5000 / 16384                     # nine validations of a held-out text shorter than asked for
    saves = int(account["steps"] / 10) + 2            # every ten seconds, the first and the last
    assert sum(account.values()) == pytest.approx(1.0 + steps * (step + 0.02) + look + 0.05 * saves)


def test_epochs_and_tokens_of_a_token_budget():
    plan = plan_of("51200 tokens")
    assert plan.tokens == 51200 and plan.epochs == pytest.approx(0.512) and plan.steps == 100
    assert plan_of("51200 tokens", text=Text(None, None, "unknown", False, {})).epochs is None


@pytest.mark.parametrize("more, told", [
    (dict(budget="0.5s"), "budget too short: 0.5s is not enough for one step"),
    (dict(budget="30 steps"), "30 steps; train.batch_tokens="),
    (dict(budget="1e6 tokens"), "read 10.0 times; beyond 4 epochs"),
    (dict(budget="3000 steps", memory_bytes=2**20), "memory: .*more than nine tenths"),
    (dict(budget="3000 steps", free=1000), "disk: up to .* are free"),
    (dict(budget="60s", step=0.001, setup=30.0), "of the time goes to steps")])
def test_warnings(more, told):
    found = plan_of(**more).warnings
    assert any(re.search(told, line) for line in found), found


def test_a_sound_plan_has_no_warning():
    assert plan_of("600 steps", text=Text(10**6, 10**5, "", True, {})).warnings == []


# ---- measuring


class Ticking:
    """A clock that moves by the same amount whenever it is asked."""

    def __init__(self, tick):
        self.times = itertools.count(0.0, tick)

    def __call__(self):
        return next(self.times)


def test_measured_costs_are_what_the_clock_says(tmp_path):
    config = load("demo", [*SMALL, f"out={tmp_path}", "objective.mask_rate_end=0.1"])
    found = measure(config, 1.0, clock=Ticking(0.01))
    assert found.micro_tokens == 512 and len(found.micro) == 4  # a plateau of the mask rate each
    assert all(seconds == pytest.approx(0.01) for seconds in found.micro.values())
    assert found.update == pytest.approx(0.01 + LOOP_SECONDS) and found.save == pytest.approx(0.01)
    assert found.validation == pytest.approx(0.01 * config.train.validation_tokens / 512)
    assert found.steps >= 12 and list(tmp_path.iterdir()) == []  # what it wrote is gone


def test_typical_leaves_the_slowest_fiftieth_out():
    assert typical([1.0] * 9 + [100.0]) == 1.0 and typical([2.0]) == 2.0
    assert typical([1.0] * 90 + [2.0] * 8 + [500.0] * 2) == pytest.approx((90 + 16) / 98)


def test_a_model_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("cram.insight.plan.measuring.available_bytes", lambda: 10**5)
    with pytest.raises(CramError, match="does not fit: even with one row of 32 tokens"):
        measure(load("demo", SMALL), 1.0)


# ---- memory


@pytest.mark.parametrize("name, overrides", [
    ("demo", ()), ("demo_gpt", ()), ("demo", ("optimizer.type=adamw",)), ("demo", ("optimizer.type=adalomo",)),
    ("cramming2022", ("model.layers=3", "tokenizer.vocab_size=300", "model.norm_eps=1e-6")),
    ("demo", ("model.mlp=relu2", "model.norm=layernorm", "model.layers=4", "model.bias=true"))])
def test_memory_is_what_tensors_take(name, overrides):
    config = load(name, ["train.batch_tokens=2048", "train.batch_ramp=0", "train.batch_start_tokens=null", "train.threads=1",
                         "train.sequence_length=128", "model.width=64", "model.heads=2", "train.device=cpu",
                         "model.mlp_width=null",
                         *overrides])
    vocab_size = config.tokenizer.vocab_size
    learner = Learner(config, choose_device(config.train), World(kind="cpu"), vocab_size)
    (micro,) = make_batch(config, learner.device, 2048, 2048)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage(), tensor.ndim == 2 and vocab_size in tensor.shape
        return tensor
    own = {parameter.untyped_storage()._cdata for parameter in learner.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner.loss(micro.ids_N, micro.documents, micro.positions_K, micro.labels_K, micro.causal)
    learner.update(learner.backward([micro], dict.fromkeys((False, True), 1 / 100)))
    sizes = [(storage.nbytes(), logits) for key, (storage, logits) in kept.items() if key not in own]

    parts = memory(config, vocab_size, 2048, torch.float32)
    assert parts["weights"] == sum(parameter.nbytes for parameter in learner.model.parameters())
    assert parts["optimizer"] == pytest.approx(learner.optimizers.memory(), rel=0.01)
    assert parts["activations"] == pytest.approx(sum(size for size, logits in sizes if not logits), rel=0.02)
    assert parts["logits"] == pytest.approx(2 * sum(size for size, logits in sizes if logits), rel=0.02)  # with their gradient


def test_what_saves_memory_shows():
    config = load("bert_day", ["model.layers=4"])

    def with_(*overrides):
        return memory(load("bert_day", ["model.layers=4", *overrides]), 32768, 8192, torch.bfloat16)
    plain = memory(config, 32768, 8192, torch.bfloat16)
    selective, full = (with_(f"train.recompute={mode}")["activations"] for mode in ("selective", "full"))
    assert plain["activations"] > selective > full
    assert with_("train.loss=chunked")["logits"] < plain["logits"]
    assert with_("train.ema=0.99")["moving average"] == plain["weights"]
    assert with_("optimizer.type=adalomo", "optimizer.fused_backward=true", "optimizer.clip=null",
                 "train.batch_ramp=0", "train.batch_start_tokens=null",
                 "train.micro_batch_tokens=524288")["gradients"] < plain["gradients"] / 2
    assert plain["copies for autocast"] > 0 and memory(config, 32768, 8192, torch.float32)["copies for autocast"] < 10**6
    half, whole = (memory(config, 32768, tokens, torch.bfloat16)["activations"] for tokens in (4096, 8192))
    assert whole == pytest.approx(2 * half, rel=1e-6)


# ---- cards


def test_every_card_is_plausible_and_sourced():
    assert set(CARDS) == set(PEAK_FLOPS)
    for card in CARDS.values():
        assert 8e9 <= card.memory <= 300e9 and 70 <= card.watts <= 1000 and card.source
        assert 60 < card.peak / card.bandwidth < 500  # FLOPs a byte at the ridge of its roofline
        assert (card.usd_per_hour is None) == (card.price_source == "")
    assert 0 < MFU[0] < MFU[1] < MFU[2] < 1


@pytest.mark.parametrize("name", ["h100", "RTX 4090", "4090", "rtx-4090", "NVIDIA GeForce RTX 4090", "L40S", "a6000"])
def test_cards_are_found_by_the_names_people_use(name):
    assert find_card(name).name.lower().split()[-1] in name.lower()


def test_on_a_card_the_largest_micro_batch_that_fits():
    config = load("bert_day")
    outline = Outline(config)
    small, large = (of_card(config, outline, CARDS[name]) for name in ("T4", "H100"))
    for each, card in ((small, CARDS["T4"]), (large, CARDS["H100"])):
        assert sum(memory(config, 32768, each.micro_tokens, each.precision).values()) <= 0.9 * card.memory
        assert config.train.batch_tokens % each.micro_tokens == 0 and not each.measured
    assert small.micro_tokens < large.micro_tokens and small.precision is torch.float16
    assert large.rate == MFU[1] * PEAK_FLOPS["H100"]
    with pytest.raises(CramError, match="does not fit: .* of T4"):
        giant = load("bert_day", ["model.width=6144"])
        of_card(giant, Outline(giant), CARDS["T4"])


# ---- text, loss, command


def test_text_is_counted_estimated_or_unknown(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 33_700)
    found = find_text(load("demo", ["data.source=files", f"data.files=[{tmp_path}/*.txt]", f"out={tmp_path}"]))
    assert found.tokens == pytest.approx(10_000, rel=0.01) and not found.exact and "estimated" in found.told
    unknown = find_text(load("demo", [f"out={tmp_path}"]))
    assert unknown.tokens is None and "unknown" in unknown.told
    hub = find_text(load("bert_day", [f"out={tmp_path}"]))
    assert 8.9e9 < hub.tokens < 9.1e9


def test_a_law_of_the_same_recipe_foresees_the_loss_and_no_other(tmp_path):
    config = load("demo", SMALL)
    law = [2.0, 60.0, 300.0, 0.4, 0.42]
    record = {"what": "scale", "recipe": recipe(config), "rows": [{"n": n, "tokens": d} for n in (1e4, 1e5)
                                                                  for d in (1e5, 1e6)],
              "fit": {"law": law, "draws": [law] * 3, "residuals": [0.0]}}
    path = tmp_path / "law.json"
    path.write_text(json.dumps(record))
    found = expected_loss(config, 20_000, 500_000, path)
    assert found.loss == pytest.approx(2 + 60 / 20_000**0.4 + 300 / 500_000**0.42) and found.low == found.high == found.loss
    assert "times" not in found.told and "10.0 times" in expected_loss(config, 20_000, 10**7, path).told
    resized = load("demo", [*SMALL, "model.layers=7", "budget=9h", "train.threads=2"])
    assert expected_loss(resized, 20_000, 500_000, path).loss == found.loss  # size, budget and machine are no recipe
    with pytest.raises(CramError, match="another recipe: objective.mask_rate 0.4 -> 0.2"):
        expected_loss(load("demo", [*SMALL, "objective.mask_rate=0.2"]), 20_000, 500_000, path)
    path.write_text("{}")
    with pytest.raises(CramError, match="not a scaling study"):
        expected_loss(config, 20_000, 500_000, path)


def test_the_command_tells_all_and_json_says_the_same(cram, tmp_path):
    told = cram("plan", "bert_day", "--gpu", "H100", "--usd-per-hour", "2", f"out={tmp_path}")
    assert told.code == 0 and all(f"\n  {what} " in told.out for what in (
        "micro-batch", "tokens", "steps", "time", "memory", "disk", "energy", "cost", "loss", "assumed"))
    assert "assumed, not measured" in told.out and "at $2 an hour, as given" in told.out
    record = json.loads(cram("plan", "bert_day", "--gpu", "H100", "--json", f"out={tmp_path}").out)
    assert record["seconds"] <= 86400 and record["tokens"] == sum(leg["tokens"] for leg in record["legs"])
    assert record["slow"][0] < record["tokens"] < record["fast"][0] and not record["measured"]


@pytest.mark.parametrize("arguments, told", [
    (["--gpu", "H1000"], "did you mean 'H100'"), (["--gpu", "H100", "--measure", "3"], "give one of them"),
    (["--measure", "fast"], "expected seconds"), (["--usd-per-hour", "-1"], "a price in dollars"),
    (["--fit", "nowhere.json", "--gpu", "H100"], "not a scaling study"), (["--out", "x"], "--out is for cram plan --check"),
    (["nosuch"], "no such configuration")])
def test_refusals_are_one_line(cram, arguments, told):
    found = cram("plan", *arguments)
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1


@pytest.mark.slow
def test_a_real_run_is_foreseen(tiny, small_config, tmp_path):
    """Tolerant: other tests may run beside it. ``cram plan --check`` is the strict one."""
    from cram.audit import read_ledger
    from cram.train import pretrain

    config = small_config("train.batch_tokens=2048", f"out={tmp_path}", budget="15s")
    plan = make_plan(config, Outline(config, 300), measure(config, 5.0), Text(None, None, "", False, {}))
    pretrain(config, tiny["data"], tiny["tokenizer"], tmp_path / "run", "run", lambda line: None)
    assert plan.tokens == pytest.approx(read_ledger(tmp_path / "run" / "ledger.jsonl").tokens, rel=0.6)
