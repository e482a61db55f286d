"""``cram scale [config ...] [key=value ...]``: fit the loss over sizes and budgets, and recommend a size.

    cram scale demo_gpt train.threads=1             the usual grid: 4 sizes, 4 budgets, the largest held out
    cram scale --tiny                               the same in a minute, to see how it goes
    cram scale demo_gpt --sizes 2x96 2x128 3x192 --budgets '1e6 tokens' '2e6 tokens' '4e6 tokens' '8e6 tokens'
    cram scale --render scaling/demo_gpt.json       the page again, from its record
    cram scale --day scaling/demo_gpt.json          on paper: what an hour and a day on named cards would make of it

Runs lie among all others (``out``); what is there is found again, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, Callable, Sequence

from cram.errors import CramError

OUT = Path("scaling")


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram scale`` with these arguments; returns the exit code. CramError for a grid that determines nothing."""
    from cram.insight.scale import grid

    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]", help="as for cram run; the recipe of "
                                                                                            "all runs")
    parser.add_argument("--sizes", nargs="+", metavar="LxD", help=f"layers x width (default: {' '.join(grid.SIZES)})")
    parser.add_argument("--budgets", nargs="+", metavar="BUDGET", help="of each run, tokens or FLOPs; the largest is held out "
                                                                       f"(default: {', '.join(grid.BUDGETS)})")
    parser.add_argument("--recommend", nargs="+", metavar="BUDGET", default=[], help="also name the size for these FLOPs or "
                                                                                     "times")
    parser.add_argument("--tiny", action="store_true", help="a grid of a minute: shows how it goes, proves nothing")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run nothing")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"folder of record and page (default: {OUT})")
    parser.add_argument("--render", type=Path, metavar="JSON", help="make the page of this record again")
    parser.add_argument("--day", type=Path, metavar="JSON", help="from this record, on paper: size, tokens and loss of an hour "
                                                                 "and a day on cards, with an interval")
    parser.add_argument("--gpu", nargs="+", metavar="NAME", help="--day: the cards, by name: H100 'RTX 4090' ...")
    options = parser.parse_intermixed_args(arguments)
    for name in ("sizes", "budgets", "recommend", "gpu"):     # a list takes all that follows, settings too: those have a "="
        found = getattr(options, name) or []
        options.settings += [text for text in found if "=" in text]
        setattr(options, name, [text for text in found if "=" not in text])
    if options.day is not None:
        return _day(options, say)
    if options.gpu:
        raise CramError("--gpu names cards for --day; a study runs here: leave it out, or give --day RECORD.json")
    if options.render is not None:
        if options.settings or options.sizes or options.budgets or options.recommend:
            raise CramError("--render takes a record and nothing else; --recommend needs the study: give its settings again")
        return _render(options.render, say)
    settings = [*(grid.TINY if options.tiny else ()), *options.settings]
    settings.sort(key=lambda text: "=" in text)  # configurations first, the order within both as given
    sizes = options.sizes or (grid.TINY_SIZES if options.tiny else grid.SIZES)
    budgets = options.budgets or (grid.TINY_BUDGETS if options.tiny else grid.BUDGETS)
    config = grid.study(settings)
    cells = grid.make_cells(config, sizes, budgets)
    asked = _asked(options.recommend, config, cells)
    _tell_cost(config, cells, say)
    if options.dry_run:
        return 0
    record = study(config, settings, cells, asked, shlex.join(["cram", "scale", *arguments]), say)
    record["name"] += "-tiny" * options.tiny    # or a minute's toy would take the place of a study of hours
    from cram.insight.scale import page
    return _render(page.save(record, options.out), say)


def _render(path: Path, say: Callable[[str], None]) -> int:
    from cram.insight.plan.expected import read_fit
    from cram.insight.scale import page

    record = read_fit(path)
    made = page.write(path)
    for each in record["held_out"]:
        say(f"held out {each['size']} {each['tokens']:,} tokens: foreseen {each['predicted']:.4f}, measured "
            f"{each['measured']:.4f}, error {each['error']:+.2%}")
    for each in record["advice"]:
        say(f"for {each['budget']}: {each['size']}, {each['parameters']:,} parameters, {each['tokens']:,.3g} tokens, loss "
            f"{each['loss']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
            + "".join(f"; {remark}" for remark in each["remarks"]))
        say(f"    {' '.join(each['settings'])}")
    say(f"scale: {path}, {', '.join(file.name for file in made)}")
    return 0


def _day(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """The page of an hour and a day on cards, from a record."""
    from cram.insight.plan.cards import find_card
    from cram.insight.scale import day, day_page

    if options.settings or options.sizes or options.budgets or options.recommend or options.render or options.tiny \
            or options.dry_run or options.out != OUT:
        raise CramError("--day takes a record, beside which its page goes, and --gpu, nothing else; a study is run or rendered "
                        "by a command of its own")
    cards = [find_card(name) for name in dict.fromkeys(options.gpu or day.CARDS)]
    made, days = day_page.write(options.day, cards)
    for each in days:
        say(day_page.line(each))
    say(f"on paper, none of this was run; day: {', '.join(map(str, made))}")
    return 0


def _asked(texts: Sequence[str], config, cells) -> list:
    """The budgets a size is named for: those asked for; else the recipe's own, if that has a best size, and the FLOPs of the
    largest run. CramError at once for one that has none: not after the runs."""
    from cram.budget import Budget

    asked = [Budget.parse(text) for text in texts]
    if wrong := next((budget for budget in asked if budget.kind not in ("flops", "time")), None):
        raise CramError(f"--recommend '{wrong.text}': a number of {wrong.kind} has no best size, larger is better; give FLOPs "
                        "or time, such as '1e15 flops' or 1h")
    own = Budget.parse(config.budget)
    largest = max(cell.flops for cell in cells)
    return asked or [*([own] if own.kind in ("flops", "time") else []),
                     *(Budget.parse(f"{factor * largest:.1e} flops".replace("e+", "e"))
                                                                           for factor in (1, 10))]


def _tell_cost(config, cells, say: Callable[[str], None]) -> None:
    """How much will be computed, exactly, and how long that takes at a speed measured now."""
    from cram.insight.plan.measuring import measure
    from cram.insight.scale.grid import resized

    sizes = {cell.size.name: cell.size for cell in cells}
    rates = {name: measure(resized(config, size.settings), 1.0) for name, size in sizes.items()}
    seconds = 0.0
    for cell in cells:
        costs = rates[cell.size.name]
        seconds += cell.flops / costs.rate + cell.steps * costs.update + costs.setup + 2 * costs.save
    say(f"{len(cells)} runs ({len(sizes)} sizes, {len(cells) // len(sizes)} budgets), {sum(cell.tokens for cell in cells):,} "
        f"tokens, {sum(cell.flops for cell in cells):.3g} FLOPs; about {seconds / 60:.1f} minutes of training here, by steps "
        "measured just now, less what is there already; text and evaluation come on top")


def study(config, settings: Sequence[str], cells, asked, command_line: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the grid and fit it: the record."""
    from cram.bench.measure import environment
    from cram.device import device_kind
    from cram.insight.plan.text import find_text
    from cram.insight.scale import advice, grid, page

    sizes = {cell.size.name: cell.size for cell in cells}
    rows = []
    for row in grid.run_cells(cells, settings, say):
        size = sizes[row["size"]]
        rows.append({"size": row["size"], "n": size.inner, "parameters": size.parameters, **row})
    say("fitting the law, and again for its intervals")
    first = advice.fit_rows([row for row in rows if not row["held_out"]], config.seed)
    final = advice.fit_rows(rows, config.seed)
    text, candidates = find_text(config), grid.family(config)
    if config.train.threads:
        import torch
        torch.set_num_threads(config.train.threads)
    return {"schema": 1, "what": "scale", "name": config.name, "command": command_line,
            "environment": environment(device_kind(config.train)),
            "recipe": grid.recipe(config), "text_tokens": text.tokens,
            "sizes": [{"name": size.name, "settings": list(size.settings), "parameters": size.parameters, "n": size.inner,
                       "flops_per_token": size.flops_per_token} for size in sizes.values()],
            "rows": rows, "first_law": _values(first.law), "held_out": advice.errors(first,
                                                                                     [row for row in rows if row["held_out"]]),
            "fit": {"law": _values(final.law), "draws": [_values(law) for law in final.draws],
                    "residuals": list(final.residuals)},
            "advice": [page.advice_record(advice.advise(candidates, budget, final, rows, text.tokens)) for budget in asked]}


def _values(law) -> list[float]:
    return [float(f"{value:.6g}") for value in vars(law).values()]
