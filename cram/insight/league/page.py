"""The league's page and its lines for the terminal: a table a class, the rejected with their reasons."""

from __future__ import annotations

from cram.drawing import COLOURS, INK, drawing
from cram.insight.league.card import Card
from cram.insight.league.standings import Class, Entry, standings

BARS = "▁▂▃▄▅▆▇█"
WORTH = ("What a card proves. Every card ranked here fits together: clock and seconds charged, steps and tokens, tokens and "
         "FLOPs, learning rates and schedule, curve and score, and the hash that each stage took of the one before. "
         "\"rescored\": the score was measured again here, from the weights. \"self-consistent\": only the card was at hand.")
LIMITS = ("What no card proves: whose run it is; that a liar did not train longer than the ledger tells, or on the held-out "
          "text, and then "
          "wrote all of it, clock and machine too, to fit. Weights show that a score is theirs, not what they cost. Where it "
          "matters, repeat the run: budgets of FLOPs, tokens or steps give the same bits again on the same kind of machine "
          "(cram league CARD --replay).")


def sparkline(values: list[float], width: int = 12) -> str:
    """A curve in a few letters, the highest value the tallest."""
    if not values:
        return ""
    chosen = [values[round(i * (len(values) - 1) / max(width - 1, 1))] for i in range(min(width, len(values)))] \
        if len(values) > width else values
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for value in chosen)


def league_table(members: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one class, best first."""
    metric, _ = members[0].card.score
    rows = []
    for place, entry in enumerate(members, start=1):
        card = entry.card
        curve = [row["loss"] for row in card.rows("train") if row["loss"] is not None]
        rows.append([str(place), entry.name, entry.author, f"{card.score[1]:.4f}",
                     "rescored" if entry.rescored else "self-consistent", sparkline(curve),
                     f"{card.ledger.own('tokens') / 1e6:,.2f}", f"{card.plan['parameters'] / 1e6:,.2f}",
                     f"{100 * card.ledger.fraction:.1f}%", card.plan["device"]])
    return ["", "run", "by", metric, "checked", "training loss", "tokens, M", "parameters, M", "spent", "device"], rows


def league_blocks(entries: list[Entry], command: str) -> list[tuple]:
    """The page."""
    classes, rejected = standings(entries), [entry for entry in entries if not entry.accepted]
    accepted = sum(map(len, classes.values()))
    blocks: list[tuple] = [
        ("title", "Budget league"),
        ("facts", [(str(accepted), "cards ranked", f"in {len(classes)} class{'es' * (len(classes) != 1)}"),
                   (str(sum(entry.rescored for entry in entries)), "rescored", "from their weights, here"),
                   (str(len(rejected)), "rejected", "with reasons, below" if rejected else "")]),
        ("text", WORTH), ("text", LIMITS)]
    for number, (key, members) in enumerate(classes.items()):
        blocks += [("section", key.title()), ("text", _measured(key)), ("table", *league_table(members)),
                   ("figure", f"class-{number + 1}", _draw(members), f"loss against budget of the runs in {key.title()}")]
        notes = [f"{entry.name}: {note}" for entry in members for note in entry.notes]
        blocks += [("details", f"notes ({len(notes)})", [("text", note) for note in notes])] if notes else []
    if rejected:
        blocks += [("section", "Rejected"),
                   ("table", ["card", "by", "reasons"], [[entry.path.name, entry.card.author if entry.card else "",
                                                          "; ".join(entry.reasons)] for entry in rejected])]
    return [*blocks, ("section", "Do it again"), ("code", command)]


def league_lines(entries: list[Entry]) -> list[str]:
    """For the terminal."""
    lines = []
    for key, members in standings(entries).items():
        lines.append(f"{key.title()} ({_measured(key)})")
        lines += [f"{place:>4}  {entry.card.score[1]:.4f}  {entry.name}{entry.by}"
                  f"  {'rescored' if entry.rescored else 'self-consistent'}{''.join(f'; {note}' for note in entry.notes)}"
                  for place, entry in enumerate(members, start=1)]
    return lines + [f"rejected: {entry.path.name}: {reason}" for entry in entries for reason in entry.reasons]


def _measured(key: Class) -> str:
    return f"held-out text {key.text[:12]}, {key.measured}"


def _draw(members: list[Entry]) -> str:
    """Validations on the way, and the score at the end, of the first few of a class."""
    with drawing(6.2, 3.2) as made:
        axes = made.figure.subplots()
        for colour, entry in zip(COLOURS, members):
            axes.plot(*_curve(entry.card), "o-", markersize=3, color=colour, label=plain(entry.name))
        axes.set(xlabel="budget spent, %", ylabel="validation loss, nats", xlim=(0, 102))
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return made.svg


def _curve(card: Card) -> tuple[list[float], list[float]]:
    points = [(100 * point.spent / card.ledger.amount, point.loss) for point in card.curve()]
    points.append((100 * card.ledger.fraction, card.scores["held_out"]["loss"]))
    return [x for x, _ in points], [y for _, y in points]


def plain(name: str) -> str:
    """A name that matplotlib writes as it is."""
    return name.replace("$", r"\$").lstrip("_") or "run"
