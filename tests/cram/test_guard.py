"""The guard: which steps it skips, beside an oracle in NumPy; exact over a save; never waiting for the device."""

import io

import numpy as np
import pytest
import torch

from cram.guard import LEAST_SPREAD, TINY, Guard
from cram.schema import Train


def oracle(losses, norms, sigmas, window, resets=()):
    """The rule once more, in float64 and plain Python: a flag for every step."""
    memory, flags = [], []
    for number, (loss, norm) in enumerate(zip(losses, norms)):
        if number in resets:
            memory = []
        skip = not (np.isfinite(loss) and np.isfinite(norm))
        if not skip and sigmas is not None and len(memory) >= window:
            last = np.array(memory[-window:], dtype=np.float64)
            skip = loss > last.mean() + sigmas * max(last.std(), LEAST_SPREAD * abs(last.mean()) + TINY)
        flags.append(bool(skip))
        memory += [] if skip else [loss]
    return flags


def series(seed, steps=300):
    """A falling, noisy loss and a norm, with planted leaps, NaNs and infinities."""
    rng = np.random.default_rng(seed)
    losses = (3 + 4 * np.exp(-np.arange(steps) / 60) + 0.05 * rng.standard_normal(steps)).astype(np.float32)
    norms = rng.uniform(0.1, 2, steps).astype(np.float32)
    for array, values in ((losses, [np.nan, np.inf, -np.inf, 9.0, 1e30]), (norms, [np.nan, np.inf])):
        for value in values:
            array[rng.integers(0, steps, 4)] = value
    return losses, norms


def judged(guard, losses, norms):
    return [guard.judge(torch.tensor(loss), torch.tensor(norm)) for loss, norm in zip(losses, norms)]


def settings(sigmas=4.0, window=16):
    return Train(spike_sigmas=sigmas, spike_window=window)


@pytest.mark.parametrize("sigmas", [4.0, None])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_steps_skipped_are_those_of_the_oracle(seed, sigmas):
    losses, norms = series(seed)
    guard = Guard(settings(sigmas))
    flags = []
    for number, (loss, norm) in enumerate(zip(losses, norms)):
        if number == 150:
            guard.reset()
        flags.append(bool(guard.judge(torch.tensor(loss), torch.tensor(norm))))
    expected = oracle(losses, norms, sigmas, 16, resets={150})
    assert flags == expected and 15 < sum(flags) < 100
    assert guard.check().skipped == [number + 1 for number, flag in enumerate(expected) if flag]


def test_a_leap_is_judged_only_when_the_memory_is_full_and_a_fall_never():
    guard = Guard(settings(6.0, 8))
    calm = [2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0]
    answers = [float(guard.judge(torch.tensor(loss))) for loss in [*calm, 50.0, *calm, 2.0, 0.01, 50.0, 2.0]]
    assert answers == [0] * len(calm) + [0] + [0] * (len(calm) + 1) + [0, 1, 0]


def test_a_loss_that_stands_still_may_move_a_little():
    guard = Guard(settings(6.0, 4))
    answers = [float(guard.judge(torch.tensor(loss))) for loss in [2.0] * 8 + [2.001, 2.1]]
    assert answers == [0] * 9 + [1]


def test_a_run_of_spikes_does_not_make_itself_normal_and_is_counted():
    guard = Guard(settings(6.0, 4))
    for loss in [2.0, 2.1, 1.9, 2.0, *[7.0] * 9]:
        guard.judge(torch.tensor(loss), torch.tensor(1.0))
    assert guard.check() == ([5, 6, 7, 8, 9, 10, 11, 12, 13], 9, 13)
    guard.judge(torch.tensor(float("nan")), torch.tensor(1.0))
    assert guard.check()[:2] == ([14], 10)
    guard.judge(torch.tensor(2.0), torch.tensor(1.0))
    assert guard.check()[:2] == ([], 0) and guard.check() == ([], 0, 0)


def test_a_pardon_counts_from_zero_and_keeps_the_memory():
    guard = Guard(settings(6.0, 4))
    judged(guard, [2.0, 2.1, 1.9, 2.0, 9.0, 9.0], [1.0] * 6)
    guard.pardon()
    assert guard.check()[:2] == ([], 0)
    judged(guard, [9.0], [1.0])
    assert guard.check()[:2] == ([7], 1)


def test_a_saved_memory_goes_on_bit_for_bit():
    losses, norms = series(7)
    straight = Guard(settings())
    answers = judged(straight, losses, norms)
    first = Guard(settings())
    judged(first, losses[:103], norms[:103])
    first.check()
    judged(first, losses[103:107], norms[103:107])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    judged(first, losses[:50], norms[:50])  # what comes after does not change what was saved
    second = Guard(settings())
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(torch.stack(judged(second, losses[107:], norms[107:])), torch.stack(answers[107:]))
    for name, value in straight.state_dict().items():
        if name != "unread":
            assert torch.equal(torch.as_tensor(second.state_dict()[name]), torch.as_tensor(value)), name
    assert second.check().skipped == [number for number in straight.check().skipped if number > 103]


def test_a_snapshot_is_not_changed_by_the_steps_after_it():
    guard = Guard(settings())
    losses, norms = series(3)
    judged(guard, losses[:40], norms[:40])
    state = guard.state_dict()
    before = {name: torch.as_tensor(value).clone() for name, value in state.items()}
    judged(guard, losses[40:80], norms[40:80])
    guard.reset(), guard.pardon()
    assert all(torch.equal(torch.as_tensor(state[name]), before[name]) for name in before)


def test_judging_never_waits_for_the_device():
    """On fake tensors, which have no values, any look at a value raises."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        guard = Guard(settings())
        for _ in range(3):
            skip = guard.judge(torch.zeros(()), torch.ones(()))
        guard.reset(), guard.pardon(), guard.judge(torch.zeros(()))
        guard.state_dict()
        assert skip.shape == () and skip.dtype == torch.float32
        with pytest.raises(DataDependentOutputException):
            guard.check()
