"""Forged cards are rejected, each for its reason. Most forgers here sign everything again (``Forgery.write``)."""

import pytest

from cram.insight.league.card import write_card
from tests.cram.insight.league_runs import Forgery, body, in_two_sessions, reasons, scale, shift


@pytest.mark.parametrize("name", ["clock", "steps", "causal", "other"])
def test_honest_cards_are_accepted_also_when_signed_again(name, tmp_path):
    write_card(tmp_path / "honest.card.json", body(name))
    assert reasons(tmp_path / "honest.card.json") == ""
    assert reasons(Forgery(name).write(tmp_path / "again.card.json")) == ""


def test_an_interrupted_run_is_accepted(tmp_path):
    assert reasons(in_two_sessions(Forgery("clock")).write(tmp_path / "two.card.json")) == ""


# ---- forgers who sign everything again

def better_score(forged):
    held_out = forged.body["scores"]["held_out"]
    held_out["loss"] *= 0.7
    forged.body["scores"]["gain_over_unigram"] = 1 - held_out["loss"] / forged.body["scores"]["baselines"]["unigram"]["loss"]


def better_score_and_gain_forgotten(forged):
    forged.body["scores"]["held_out"]["loss"] *= 0.98


def better_bits(forged):
    forged.body["scores"]["held_out"]["bits_per_byte"] *= 0.7


def impossible_accuracy(forged):
    forged.body["scores"]["held_out"]["accuracy"] += 0.4 / forged.body["scores"]["held_out"]["predicted"]


def loss_that_no_accuracy_allows(forged):
    forged.body["scores"]["held_out"]["loss"] = 0.01


def weak_baseline(forged):
    forged.body["scores"]["baselines"]["uniform"]["loss"] *= 1.2


def easier_text(forged):
    forged.body["scores"]["held_out"]["documents"] += 10_000


def part_of_the_text(forged):
    forged.body["scores"]["held_out"]["tokens"] //= 2


def other_objective(forged):
    forged.body["scores"]["objective"] = "hybrid"


def longer_training(forged):
    for row in forged.rows:
        row["steps"], row["tokens"], row["flops"] = row["steps"] // 2, row["tokens"] // 2, row["flops"] / 2


def more_steps_in_the_metrics(forged):
    for row in forged.metrics:
        if row["kind"] in ("train", "validation"):
            row["step"] *= 2


def ledger_of_another_run(forged):
    forged.rows = Forgery("other").rows


def first_session_removed(forged):
    in_two_sessions(forged)
    forged.rows = forged.rows[forged.cut + 3:]


def end_of_a_session_removed(forged):
    in_two_sessions(forged)
    del forged.rows[forged.cut:forged.cut + 3]


def seconds_of_a_session_removed(forged):
    in_two_sessions(forged)
    gone = forged.rows[forged.cut]["account"]["steps"]
    for row in forged.rows[forged.cut + 3:]:
        row["account"]["steps"] = round(row["account"]["steps"] - gone, 6)
        row["seconds"] = round(sum(row["account"].values()), 6)
    forged.rows = [forged.rows[0], *forged.rows[forged.cut + 2:]]


def crash_uncharged(forged):
    in_two_sessions(forged)
    close = forged.rows[forged.cut + 2]
    forged.rows[forged.cut + 2] = {name: value for name, value in close.items() if name != "reason"} | {
        "kind": "crash", "charged": 0.0}


def lost_work_deleted(forged):
    in_two_sessions(forged)
    forged.rows[forged.cut + 4]["lost_since_checkpoint"] = 0.7


def lost_work_kept(forged):
    """Goes on from the first checkpoint, of step 0, and calls nothing lost."""
    in_two_sessions(forged)
    forged.rows[forged.cut + 4] |= {"step": 0, "steps": 0, "tokens": 0, "flops": 0.0}


def rows_removed_with_their_seconds(forged):
    middle = len(forged.rows) // 2
    taken = forged.rows[middle + 8]["account"]["steps"] - forged.rows[middle]["account"]["steps"]
    for row in forged.rows[middle + 9:]:
        row["account"]["steps"] = round(row["account"]["steps"] - taken, 6)
        row["seconds"] = round(sum(row["account"].values()), 6)
    del forged.rows[middle + 1:middle + 9]


def heartbeats_removed(forged):
    forged.rows = [row for row in forged.rows if row["kind"] != "heartbeat"]


def seconds_halved(forged):
    scale(forged, 0.5)


def seconds_of_another_machine(forged):
    scale(forged, 1e-5)


def clock_backwards(forged):
    row = forged.rows[len(forged.rows) // 2]
    row["at"] = shift(row["at"], -30)


def seconds_given_back(forged):
    for row in forged.rows[-2:]:
        row["account"]["steps"] -= 4
        row["seconds"] = round(row["seconds"] - 4, 6)


def account_that_does_not_add_up(forged):
    forged.rows[-1]["account"]["steps"] -= 1


def budget_relabelled_in_the_card(forged):
    forged.body["budget"] = "4s"


def budget_relabelled_everywhere(forged):
    forged.set("budget", "4s")
    forged.body["budget"] = "4s"
    for row in forged.rows:
        if row["kind"] == "open":
            row["budget"] = "4s"


def larger_budget_relabelled(forged):
    forged.set("budget", "200 steps")
    forged.body["budget"] = forged.rows[0]["budget"] = "200 steps"


def tokens_inflated(forged):
    for row in forged.rows:
        row["tokens"] *= 2


def flops_deflated(forged):
    for row in forged.rows:
        row["flops"] *= 0.5


def flops_deflated_in_the_plan_too(forged):
    flops_deflated(forged)
    for row in forged.metrics:
        if row["kind"] == "plan":
            row["flops_per_token"] *= 0.5


def learning_rate_changed_after(forged):
    forged.set("optimizer.lr", 0.02)


def model_changed_after(forged):
    forged.set("model.layers", 4)


def batch_changed_after(forged):
    forged.set("train.batch_tokens", 1024)


def seed_changed_in_the_card_alone(forged):
    forged.body["config"]["seed"] = 7


def teacher_left_out(forged):
    forged.set("distill.teacher", "runs/big/pretrain")


def schedule_of_a_larger_budget(forged):
    for row in forged.train():
        row["progress"] *= 0.5
        row["lr"] = row["muon_lr"] = None


def unfinished(forged):
    forged.rows[-1]["reason"] = "interrupted"


def went_on_after_the_end(forged):
    forged.rows.append(dict(forged.rows[-1]))


def weights_of_another_step(forged):
    forged.body["weights"]["step"] -= 1


def weights_not_sealed(forged):
    forged.body["weights"]["xxh3_128"] = "0" * 32


def record_that_ends_early(forged):
    forged.body["progress"]["last"] = 0.8


def other_hardware(forged):
    forged.body["hardware"]["device"] = "NVIDIA T4"


def written_before_the_run(forged):
    forged.body["made"] = shift(forged.rows[0]["at"], -3600)


def loss_below_all_training(forged):
    """Also the validations rewritten to lead there."""
    fall = 0.5
    for row in forged.metrics:
        if row["kind"] == "validation":
            row["loss"] *= fall
    scores = forged.body["scores"]
    for name in ("loss", "bits_per_byte"):
        scores["held_out"][name] *= fall
    scores["gain_over_unigram"] = 1 - scores["held_out"]["loss"] / scores["baselines"]["unigram"]["loss"]


def validations_removed(forged):  # a score without a curve to hold it against
    forged.metrics = [row for row in forged.metrics if row["kind"] != "validation"]


def end_of_training_removed(forged):
    forged.metrics = [row for row in forged.metrics if row["kind"] != "train" or row["progress"] < 0.9]


def losses_removed(forged):
    for row in forged.train()[-3:]:
        row["loss"] = None


SIGNED = [
    ("steps", better_score, "validations on the way lead to"), ("clock", better_score_and_gain_forgotten, "gain over"),
    ("causal", better_bits, "bits per byte are not"), ("clock", impossible_accuracy, "no whole number"),
    ("clock", loss_that_no_accuracy_allows, "cannot go with"), ("clock", weak_baseline, "uniform baseline"),
    ("clock", easier_text, "more text was scored than is held out"), ("causal", part_of_the_text, "not all their tokens"),
    ("clock", other_objective, "scored as a hybrid"), ("causal", loss_below_all_training, "far below every training loss"),
    ("clock", longer_training, "not the same run"), ("clock", more_steps_in_the_metrics, "not the same run"),
    ("steps", ledger_of_another_run, "beyond|clock at step|not the same run|metrics end"),
    ("clock", first_session_removed, "a session is missing"), ("clock", end_of_a_session_removed, "where none has ended"),
    ("clock", seconds_of_a_session_removed, "a session begins where none|beyond the|not the same run"),
    ("clock", crash_uncharged, "a crash was charged 0.000 s"), ("clock", lost_work_deleted, "the row tells of 0.700 s"),
    ("clock", lost_work_kept, "were charged since the checkpoint"),
    ("clock", rows_removed_with_their_seconds, "by the clock|not the same run"),
    ("clock", heartbeats_removed, "rows were removed"),
    ("clock", seconds_halved, "by the clock"), ("clock", seconds_of_another_machine, "at most"),
    ("clock", clock_backwards, "runs backwards"), ("clock", seconds_given_back, "given back"),
    ("clock", account_that_does_not_add_up, "adds up to"),
    ("clock", budget_relabelled_in_the_card, "told in different ways"), ("clock", budget_relabelled_everywhere, "overspent"),
    ("steps", larger_budget_relabelled, "unspent"),
    ("clock", tokens_inflated, "tokens in"), ("steps", flops_deflated, "where the formula says"),
    ("steps", flops_deflated_in_the_plan_too, "the plan says"),
    ("clock", learning_rate_changed_after, "is not the schedule's"), ("clock", model_changed_after, "parameters, the config"),
    ("clock", batch_changed_after, "tokens in"), ("clock", seed_changed_in_the_card_alone, "another seed"),
    ("clock", teacher_left_out, "was not charged"), ("clock", schedule_of_a_larger_budget, "another budget's schedule"),
    ("clock", unfinished, "did not finish"), ("clock", went_on_after_the_end, "goes on after its end"),
    ("clock", weights_of_another_step, "ends at different steps"), ("clock", weights_not_sealed, "weights are not those"),
    ("clock", record_that_ends_early, "record of progress ends"), ("clock", other_hardware, "other hardware"),
    ("clock", written_before_the_run, "before its run ended"),
    ("steps", validations_removed, "0 validations, where 9 are due"),
    ("steps", end_of_training_removed, "that of step 75 was removed"), ("steps", losses_removed, "though no step was skipped"),
]


@pytest.mark.parametrize("name, forge, reason", SIGNED, ids=[forge.__name__ for _, forge, _ in SIGNED])
def test_a_forged_card_is_rejected(name, forge, reason, tmp_path):
    forged = Forgery(name)
    forge(forged)
    found = reasons(forged.write(tmp_path / "forged.card.json"))
    assert any(part in found for part in reason.split("|")), found
