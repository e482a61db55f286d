"""Time a training step of two checkouts of cram in turns: what does a change gain, on a machine that is never quiet?

    python reports/step_pairs.py OLD_CHECKOUT NEW_CHECKOUT demo_gpt [key=value ...] [--turns 30] [--new key=value] [--threads 2]

One process for each checkout stays alive; in every turn each takes a few steps, one process after the other, in changing
order. Time is what the one thread of a process computed (``time.thread_time``), so neighbours' shares of the processor are
not in it, what they take of caches and memory is; with ``--threads`` above 1, the wall's. The ratio is the median over turns of old / new: above 1 the new one is
faster. The text is random tokens in documents of realistic lengths, the same for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

WARM_UP = 2


def work(steps: int, settings: list[str]) -> None:
    """A worker: for every line on standard input a few steps, and what each took, in seconds, on standard output."""
    import torch

    from cram.config import load
    from cram.device import keep_freed_memory
    from cram.errors import CramError
    from cram.insight.profile.step import prepared

    try:
        config = load([text for text in settings if "=" not in text], [text for text in settings if "=" in text])
    except CramError as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(config.train.threads)
    keep_freed_memory()
    clock = time.thread_time if config.train.threads == 1 else time.perf_counter
    losses: list[torch.Tensor] = []
    with prepared(config, compiled=True) as step:  # where train.compile says so: on the CPU only with train.compile=on
        judge = step.learner.guard.judge
        step.learner.guard.judge = lambda loss, norm=None: (losses.append(loss), judge(loss, norm))[1]
        for _ in range(WARM_UP):
            step(prefetch=False)
        print("ready", flush=True)
        for _ in sys.stdin:
            started = clock()
            for _ in range(steps):
                step(prefetch=False)
            print((clock() - started) / steps, float(losses[-1]), flush=True)


def start(checkout: str, steps: int, threads: int, settings: list[str]) -> subprocess.Popen:
    own = [text for text in settings if not text.startswith("env:")]
    environment = dict(text.removeprefix("env:").split("=", 1) for text in settings if text.startswith("env:"))
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(checkout), "OMP_NUM_THREADS": str(threads), **environment}
    worker = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--work", "--steps", str(steps), *own],
                              cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if worker.stdout.readline().strip() != "ready":
        sys.exit(f"{checkout}: did not start, for the reason above")
    return worker


def ask(worker: subprocess.Popen) -> tuple[float, float]:
    worker.stdin.write("\n")
    worker.stdin.flush()
    if not (answer := worker.stdout.readline()):
        sys.exit("a worker ended, for the reason above")
    seconds, loss = answer.split()
    return float(seconds), float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", help="OLD_CHECKOUT NEW_CHECKOUT [config ...] [key=value ...]")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="steps of each in a turn (3)")
    parser.add_argument("--threads", type=int, default=1, help="of each (1)")
    parser.add_argument("--old", action="append", default=[], metavar="KEY=VALUE",
                        help="for the old checkout alone; env:NAME=VALUE is set in its environment")
    parser.add_argument("--new", action="append", default=[], metavar="KEY=VALUE", help="for the new checkout alone")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.work:
        return work(options.steps, options.words)
    if len(options.words) < 2 or options.turns < 2 or options.steps < 1 or options.threads < 1:
        parser.error("give two checkouts, --turns of at least 2, --steps and --threads of at least 1")
    old, new, *settings = options.words
    for checkout in (old, new):     # else an installed cram would be timed in its place
        if not os.path.isfile(os.path.join(checkout, "cram", "__init__.py")):
            parser.error(f"{checkout}: no checkout of cram; give the folder that holds cram/")
    settings.append(f"train.threads={options.threads}")
    workers = [start(checkout, options.steps, options.threads, [*settings, *more])
               for checkout, more in ((old, options.old), (new, options.new))]
    took: list[list[float]] = [[], []]
    for turn in range(options.turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds, loss = ask(workers[which])
            took[which].append(1000 * seconds)
            if turn == options.turns - 1:
                print(f"{('old', 'new')[which]}: loss {loss:.6f} after {WARM_UP + 1 + options.steps * options.turns} steps")
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    ratios = statistics.quantiles([a / b for a, b in zip(*took)], n=4)
    print(f"{' '.join(settings)}: old {statistics.median(took[0]):.1f} ms, new {statistics.median(took[1]):.1f} ms a step; "
          f"old / new {ratios[1]:.3f} (quartiles {ratios[0]:.3f} to {ratios[2]:.3f}, {options.turns} turns)")


if __name__ == "__main__":
    main()
