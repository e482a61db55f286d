"""Several processes against one: the same losses, weights and checkpoints, and what the processes tell each other.

The runs are those of parallel_worker.py; torchrun starts it in two processes on the CPU.
"""

import os
import subprocess
import sys

import pytest
import torch

from cram.budget import Budget
from cram.config import load
from cram.errors import CramError
from cram.ledger import CATEGORIES, Ledger
from cram.parallel import Follower, World
from cram.record import Record
from cram.telemetry import Telemetry
from tests.cram import parallel_worker
from tests.cram.parallel_worker import MICRO_BATCHES, MODES, SAVED_AT, STEPS, Run

OBJECTIVES = pytest.mark.parametrize("causal", [False, True], ids=["masked", "causal"])


@pytest.fixture(scope="module")
def alone():
    """The same runs in this process."""
    return {causal: parallel_worker.everything(World(), causal) for causal in (False, True)}


@pytest.fixture(scope="module")
def together(root, tmp_path_factory):
    """The folder in which two processes left their results, after one launch for all modes."""
    folder = tmp_path_factory.mktemp("together")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(root / "tests" / "cram" / "parallel_worker.py"), str(folder)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=MODES)
def launched(request, together):
    """(mode, what process 0 and process 1 left)."""
    return request.param, [torch.load(together / f"{request.param}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_close(state, expected, **tolerance):
    """Two states have the same names in the same order, and nearly the same numbers."""
    assert list(state["model"]) == list(expected["model"]) and state["optimizers"].keys() == expected["optimizers"].keys()
    torch.testing.assert_close(state, expected, **tolerance)


@pytest.mark.slow
@OBJECTIVES
def test_every_step_equals_that_of_one_process(launched, alone, causal):
    mode, (main, other) = launched
    run, expected = main["runs"][causal], alone[causal]
    assert len(run["losses"]) == STEPS and other["runs"][causal]["losses"] == run["losses"]
    torch.testing.assert_close(torch.tensor(run["losses"]), torch.tensor(expected["losses"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(run["evaluated"]), torch.tensor(expected["evaluated"]), rtol=1e-5, atol=0)
    assert_close(run["last"], expected["last"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@OBJECTIVES
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(launched, causal):
    run = launched[1][0]["runs"][causal]
    assert run["again"] == run["losses"][SAVED_AT:]
    assert_close(run["again_last"], run["last"], rtol=0, atol=0)


@pytest.mark.slow
@OBJECTIVES
def test_its_checkpoint_goes_on_in_one_process(launched, alone, causal):
    run = launched[1][0]["runs"][causal]
    here = Run(World(), causal, seed=2).load(run["middle"]).train(STEPS)
    torch.testing.assert_close(torch.tensor(here.losses), torch.tensor(alone[causal]["losses"][SAVED_AT:]), rtol=1e-5, atol=0)
    assert_close(here.state(), alone[causal]["last"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@OBJECTIVES
def test_only_process_0_gets_states_and_a_first_one_holds_no_moments(launched, alone, causal):
    main, other = (result["runs"][causal] for result in launched[1])
    assert other["middle"] == {"model": {}, "optimizers": {}, "step": SAVED_AT}
    assert main["first"]["optimizers"] == {}
    torch.testing.assert_close(main["first"]["model"], alone[causal]["first"]["model"], rtol=0, atol=0)
    if not causal:  # tied: one matrix in the file, not two
        assert main["last"]["model"]["head.weight"].data_ptr() == main["last"]["model"]["embedding.weight"].data_ptr()


@pytest.mark.slow
@OBJECTIVES
def test_gradients_travel_once_a_step_and_activations_twice_a_layer(launched, causal):
    """Two micro-batches a process (ddp, fsdp), four (tp); two layers, two sums on the host or of the loss a step."""
    mode, (main, _) = launched
    calls = main["runs"][causal]["calls"]
    if mode == "ddp":
        assert calls == {"allreduce_": 2 + 1 + 1}  # all gradients in one bucket; which parameters got none
    if mode == "fsdp":  # each block and the rest: gathered for each forward pass, the blocks for each backward pass too
        assert calls["_reduce_scatter_base_"] == 3 and calls["_allgather_base_"] == (MICRO_BATCHES // 2) * (3 + 2)
    if mode == "tp":  # a layer sums two outputs, two input gradients, two gains
        assert calls["all_reduce"] == MICRO_BATCHES * 2 * (2 + 2 + 2)


@pytest.mark.slow
def test_what_the_processes_tell_each_other(launched):
    mode, results = launched
    for rank, said in enumerate(result["said"] for result in results):
        assert (said["rank"], said["size"]) == (rank, 2)
        assert said["data"] == ((0, 1) if mode == "tp" else (rank, 2))
        assert said["agree"] == (0.1, None, 0.0)
        assert said["any"] == (True, False)
        assert said["sum"] == (10 + rank if mode == "tp" else 21)
        assert said["share"]["step"] == 7 and torch.equal(said["share"]["tensor"], torch.arange(3))


@pytest.mark.slow
def test_what_cannot_be_split_is_refused_on_every_process(launched):
    mode, results = launched
    told = {"ddp": None, "fsdp": "optimizer.offload=true", "tp": "model.kv_heads is 1, which 2 processes"}[mode]
    for result in results:
        assert result["refused"] is None if told is None else told in result["refused"]


def test_a_process_on_its_own_changes_nothing():
    world = World.start(load("demo").train, "cpu")
    loss, number = torch.nn.Linear(2, 1), torch.ones(())
    assert world == World() and world.main and (world.data_rank, world.data_world, world.scale) == (0, 1, 1.0)
    assert world.wrap(loss) is loss and world.reduce(number) is number
    assert (world.agree(0.3), world.agree(None), world.any(True), world.sum(4), world.share("x")) == (0.3, None, True, 4, "x")
    world.close()


@pytest.mark.parametrize("mode, environment, cards, message", [
    ("ddp", {}, 0, "torchrun --nproc-per-node 2 -m cram pretrain NAME train.parallel=ddp"),
    ("none", {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 0, "torchrun started 2 processes"),
    ("fsdp", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 2, "--nproc-per-node 2")])
def test_a_wrong_start_is_refused_with_the_right_command(monkeypatch, mode, environment, cards, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(CramError, match=message):
        World.start(load("demo", [f"train.parallel={mode}"]).train, "cuda")


def test_weights_of_another_model_are_refused():
    run = Run(World(), causal=False)
    with pytest.raises(CramError, match="another model"):
        run.load(Run(World(), causal=True).state())


def test_a_state_is_a_copy_that_training_does_not_change():
    run = Run(World(), causal=False).train(1)
    saved = run.state()
    kept = torch.nn.utils.parameters_to_vector(saved["model"].values()).clone()
    other = Run(World(), causal=False, seed=1).load(saved).train(3)
    run.train(3)
    assert torch.equal(torch.nn.utils.parameters_to_vector(saved["model"].values()), kept)
    assert {float(state["step"]) for state in saved["optimizers"].values() if "step" in state} == {1.0}
    assert other.losses == run.losses[1:]


def test_a_follower_answers_to_all_that_the_first_process_writes_with_and_writes_nothing(tmp_path):
    follower = Follower(Budget.parse("10 steps"), tmp_path / "ledger.jsonl")
    for kind in (Ledger, Telemetry, Record):
        assert {name for name in vars(kind) if not name.startswith("_")} <= set(dir(follower))
    with follower.account("saving"):
        follower.count(steps=1, tokens=2, flops=3.0)
        follower.checkpoint(1)
        follower.train({"step": 1, "loss": 2.0})
        follower.progress(fraction=0.1, left="9 steps", loss=2.0, tokens_per_second=1.0, eta=1.0)
    assert follower.resume(1) == 0.0 and follower.spent == follower.seconds == 0.0
    assert set(follower.account_seconds) == set(CATEGORIES) and follower.budget.kind == "steps"
    follower.close("finished")
    assert not list(tmp_path.iterdir())
