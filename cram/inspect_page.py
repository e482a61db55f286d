"""The page of ``cram data inspect``: what was read, kept and dropped, and why. One file of HTML without scripts.

Every text of the corpus is escaped and shown in its own direction (dir=auto, <bdi>).
"""

from __future__ import annotations

import html
from typing import Any, Callable, Iterable, Sequence

from cram.inspect_figures import histogram, number
from cram.report_page import STYLE

MORE_STYLE = """
:root { --kept: #4c8bd6; --drop: #e0802f; --else: #999; --ins: #d6efd6; --del: #f7d9d4; }
@media (prefers-color-scheme: dark) { :root { --ins: #1d4a2a; --del: #5a2a24; --else: #777; } }
body { max-width: 56rem; } nav a { margin-right: .8rem; } p { margin: .4rem 0; } h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
section { margin-bottom: 1rem; } .soft { opacity: .75; font-size: .9rem; } pre { margin: .4rem 0; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } svg .k { fill: var(--kept); opacity: .75; }
svg .d { fill: var(--drop); opacity: .9; } svg .e { fill: none; stroke: var(--else); }
svg .g { stroke: var(--line); opacity: .6; }
svg .a { stroke: currentColor; opacity: .5; } svg .t { stroke: currentColor; stroke-dasharray: 4 3; }
.bar { height: .45rem; min-width: 1px; background: var(--kept); border-radius: 2px; } .bars { width: 9rem; margin-top: .5rem; }
.kept { color: var(--kept); } .dropped { color: var(--drop); } .other { color: var(--else); }
td, th { white-space: nowrap; } #source td + td { white-space: normal; }
details { margin: .3rem 0; } details details { margin-left: .8rem; } summary { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 0 1.5rem; }
.figures > div { break-inside: avoid; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
ins { background: var(--ins); text-decoration: none; }
del { background: var(--del); text-decoration: none; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } .bars { width: 3rem; }
  td:first-child { min-width: 7rem; white-space: normal; overflow-wrap: anywhere; }
  .stacked, .stacked tbody { display: block; } .stacked tr { display: grid; gap: 0 .8rem; padding: .4rem 0;
    grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); border-bottom: 1px solid var(--line); }
  .stacked td { border: 0; padding: 0; text-align: left; }
  .stacked td:first-child, .stacked td:has(.bars) { grid-column: 1 / -1; } .stacked td:first-child { font-weight: 600; }
  .stacked tr:first-child, .stacked td:empty { display: none; } .stacked .bars { width: 100%; }
  .stacked td::before { content: attr(data-is); display: block; font-size: .75rem; opacity: .75; }
  .stacked td:first-child::before { content: none; } }
@media print { .bar, svg, ins, del { print-color-adjust: exact; } details::details-content { content-visibility: visible; } }
"""
STACKED = 5          # columns from which a table's rows become blocks on a narrow screen
EXPLAINED = {
    "edit: blank": "edit: blank are blank lines, and spaces around lines, that the line edits remove",
    "validation_surplus": "validation_surplus are held-out documents beyond data.validation_max_bytes: never trained on",
    "max_tokens_per_char": "max_tokens_per_char is judged last, on what the other rules leave, when it is tokenised; "
                           "documents of data.validation_files are not judged"}
MARKS = {"-": "del", "+": "ins"}


def page(found: dict[str, Any], name: str) -> str:
    """The whole page; ``found``: of ``data_prep.inspection.inspect_text``; name: of the run."""
    sections = [
        ("Funnel", _funnel(found)), ("Rules", _rules(found)), ("Statistics", _statistics(found)), ("Samples", _samples(found)),
        ("Duplicates", _clusters(found["clusters"])), ("Origins", _groups(found["origins"], "origin")),
        ("Languages", _groups(found["languages"], "language")), ("Evaluation sets", _contamination(found)),
        ("Repeated passages", _passages(found.get("passages"))), ("Source", _source(found["source"]))]
    sections = [(title, content) for title, content in sections if content]
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in sections)
    body = "\n".join(f'<section id="{_anchor(title)}"><h2>{title}</h2>\n{content}\n</section>' for title, content in sections)
    title = _e(f"{name}: the data")
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            f"<style>{STYLE}{MORE_STYLE}</style></head>\n"
            f"<body>\n<h1>{title}</h1>\n<nav>{links}</nav>\n{body}\n</body></html>\n")


# ---- pieces of HTML


def _e(value: Any) -> str:
    return html.escape(str(value))


def _name(name: str) -> str:
    """A name of the configuration, which may break after each underscore."""
    return _e(name).replace("_", "_<wbr>")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _text(value: Any) -> str:
    """Words of the corpus inside a line, kept from turning the line around."""
    return f"<bdi>{_e(value)}</bdi>"


def _p(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; those whose column begins with '#' in the header are numbers, set flush right.

    A row of a table of many columns becomes a block where the screen is narrow; each cell brings the name of its column.
    """
    names, stacked = [title.lstrip("#") for title in header], len(header) >= STACKED
    side = [' class="n"' if title.startswith("#") else "" for title in header]
    marks = [f'{at} data-is="{_e(name)}"' for name, at in zip(names, side)] if stacked else side
    lines = ["".join(f"<th{at}>{name}</th>" for name, at in zip(names, side))]
    lines += ["".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row, marks)) for row in rows]
    kind = ' class="stacked"' if stacked else ""
    return f'<div class="wide"><table{kind}>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _bar(share: float) -> str:
    return f'<div class="bars"><div class="bar" style="width:{100 * min(max(share, 0), 1):.1f}%"></div></div>'


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def _size(size: float) -> str:
    """Bytes in the unit that suits them."""
    unit = next(unit for unit in (1e9, 1e6, 1e3, 1) if abs(size) >= unit or unit == 1)
    return f"{size / unit:.{0 if unit == 1 else 1}f} {({1e9: 'GB', 1e6: 'MB', 1e3: 'kB', 1: 'B'})[unit]}"


def _loss(lost: int, show: Callable[[int], str]) -> str:
    return "" if not lost else f"{'−' if lost > 0 else '+'}{show(abs(lost))}"


def _count(documents: int, what: str = "document") -> str:
    return f"{documents:,} {what}{'s' * (documents != 1)}"


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    if share in (0, 100):
        return f"{share:.0f}%"
    return f"{share:.2g}%" if 0 < share < 1 else f"{share:.1f}%"


def _value(value: Any) -> str:
    """A number, threshold or word as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ("; " if any(isinstance(each, dict) for each in value) else ", ").join(map(_value, value))
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# ---- sections


def _funnel(found: dict[str, Any]) -> str:
    steps, rate = found["funnel"], found["tokens"]["bytes_per_token"]
    read = steps[0]
    idle = [step["step"] for step in steps[1:-1] if not (step["dropped_documents"] or step["dropped_bytes"] or step["changed"])]
    rows = [[_name(step["step"]), _bar(step["bytes"] / max(read["bytes"], 1)), f"{step['documents']:,}",
             _loss(step["dropped_documents"], "{:,}".format), _size(step["bytes"]), _loss(step["dropped_bytes"], _size),
             "" if step["changed"] is None else f"{step['changed']:,}",
             *([f"{'' if step['exact'] else '~'}{step['tokens']:,}"] if rate else [])]
            for step in steps if step["step"] not in idle]
    how = {"packed": "The tokens kept are counted; the others (~) are bytes / {:.2f}, the bytes a token of the text kept",
           "held-out text": "Tokens (~) are estimated: bytes / {:.2f}, the bytes a token of held-out text",
           "unknown": "Tokens are unknown: there is no tokenizer yet"}[found["tokens"]["how"]]
    kept = steps[-1]
    lead = (f"<p>{read['documents']:,} documents ({_size(read['bytes'])}) were read; {kept['documents']:,} are kept "
            f"({_percent(kept['documents'], read['documents'])}), {_percent(kept['bytes'], read['bytes'])} of the bytes.</p>")
    header = ["step", "", "#documents left", "#lost", "#text left", "#text lost", "#changed", *["#tokens left"] * bool(rate)]
    notes = [how.format(rate or 0), "Changed: documents whose text a step altered"]
    explained = [EXPLAINED[step["step"]] for step in steps if step["step"] in EXPLAINED and step["step"] not in idle]
    notes += [f"Without effect: {', '.join(idle)}"] if idle else []
    return lead + _table(header, rows) + "".join(_p(_e(line + ".")) for line in [". ".join(notes), *explained])


def _rules(found: dict[str, Any]) -> str:
    total = found["documents"]
    rows = [[_name(rule["rule"]), _name(rule["statistic"]), _e(_value(rule["threshold"])), f"{rule['beyond']:,}",
             _percent(rule["beyond"], total), f"{rule['dropped']:,}"] for rule in found["rules"]]
    if not rows:
        return ""
    header = ["rule", "statistic", "#threshold", "#beyond", "#share", "#dropped here"]
    return _table(header, rows) + _p(
        "Beyond: documents that the rule alone would drop. Dropped here: those that no rule before it dropped.")


def _statistics(found: dict[str, Any]) -> str:
    rows = found["statistics"]
    if not rows:
        return ""
    names = list(rows[0]["quantiles"])
    table = _table(["statistic", *(f"#{name}" for name in names)],
                   ([_e(row["name"]), *(_value(float(value)) for value in row["quantiles"].values())] for row in rows))
    legend = ('<p class="soft"><span class="kept">■ kept</span> · <span class="dropped">■ dropped by a rule on this statistic'
              '</span> · <span class="other">□ dropped for another reason</span>. Heights are log(1 + documents); '
              "bars stand in front of each other. Dashed: threshold. Values beyond the axis count in the outermost bars.</p>")
    judged = _figures([row for row in rows if row["rules"]], found["documents"])
    others = _figures([row for row in rows if not row["rules"]], found["documents"])
    return (legend + judged + (_details("statistics without a rule", others) if others else "")
            + _details("quantiles of all statistics", table))


def _figures(rows: list[dict[str, Any]], documents: int) -> str:
    return f'<div class="figures">{"".join(_figure(row, documents) for row in rows)}</div>' if rows else ""


def _figure(row: dict[str, Any], documents: int) -> str:
    notes = "; ".join(f"{_e(rule['rule'])} {_e(_value(rule['threshold']))}: {_percent(rule['beyond'], documents)} beyond"
                      for rule in row["rules"])
    scale = "log axis" if row["log"] else ""
    notes = " · ".join(filter(None, (notes or "no rule", scale)))
    return f"<div><h3>{_e(row['name'])}</h3>{_p(notes)}{histogram(row)}</div>"


def _samples(found: dict[str, Any]) -> str:
    total = max(found["documents"], 1)
    lead = _p(f"Drawn by chance (seed {found['seed']}), the same at every look; the beginning of each.")
    return lead + "".join(
        _details(f"<b>{'kept: ' * (group['fate'] in ('train', 'validation'))}{_e(group['fate'])}</b>: "
                 f"{_count(group['documents'])} ({_percent(group['documents'], total)})",
                 "".join(map(_sample, group["samples"])))
        for group in found["samples"] if group["documents"])


def _sample(sample: dict[str, Any]) -> str:
    """What it begins with; inside, where it is from, the numbers that decided, and more of it."""
    values = ", ".join(f"{_e(name)} {_text(_value(value))}" for name, value in sample["values"].items())
    folded = _details(f"its {len(sample['values'])} statistics", _p(values)) if len(sample["values"]) > 4 else ""
    cut = sample["chars"] is not None and sample["chars"] > len(sample["text"])
    more = f"{len(sample['text'])} of {sample['chars']:,} characters" if cut else ""
    head = " ".join(sample["text"][:120].split()) + " …" * (len(sample["text"]) > 120)
    facts = _p(" · ".join(filter(None, (_text(sample["origin"]), "" if folded else values, more))))
    return _details(_text(head), f'{facts}{folded}<pre dir="auto">{_e(sample["text"])}</pre>')


def _clusters(clusters: dict[str, Any]) -> str:
    counts = ", ".join(f"{clusters[name]:,} dropped as {what} copies" for name, what in
                       (("exact_dedup", "exact"), ("near_dedup", "near")))
    lead = (f"<p>{clusters['documents']:,} documents lie in {_count(clusters['clusters'], 'cluster')} of two or more; "
            f"{counts}.</p>")
    most = max(clusters["sizes"].values(), default=0) or 1
    table = _table(["documents in the cluster", "#clusters", ""],
                   ([_e(size), f"{count:,}", _bar(count / most)] for size, count in clusters["sizes"].items() if count))
    return lead + (table if clusters["clusters"] else "") + "".join(map(_cluster, clusters["examples"]))


def _cluster(example: dict[str, Any]) -> str:
    first = example["first"]
    head = f"{_count(example['size'])} ({_e(example['chosen'])}): {_text(first['text'][:90])} …"
    return _details(head, "".join(_copy(first, copy) for copy in example["copies"]))


def _copy(first: dict[str, Any], copy: dict[str, Any]) -> str:
    sides = []
    for document, hidden in ((first, "+"), (copy, "-")):
        words = " ".join(f"<{MARKS[mark]}>{_e(text)}</{MARKS[mark]}>" if mark in MARKS else _e(text)
                         for mark, text in copy["pieces"] if mark != hidden)
        sides.append(f'<div>{_p(_text(document["origin"]) + " · " + _e(document["fate"]))}<pre dir="auto">{words}</pre></div>')
    return f'<div class="pair">{"".join(sides)}</div>' + _p(f"{_percent(copy['common'], 1)} of the words in common")


def _groups(groups: list[dict[str, Any]], what: str) -> str:
    if not groups:
        return ""
    most = max(max(group["bytes"] for group in groups), 1)
    rows = [[_text(group["name"]), _bar(group["bytes"] / most), f"{group['documents']:,}", _size(group["bytes"]),
             _percent(group["kept_documents"], group["documents"]), _percent(group["kept_bytes"], group["bytes"])]
            for group in groups]
    return _table([what, "bytes", "#documents", "#text", "#documents kept", "#bytes kept"], rows)


def _contamination(found: dict[str, Any]) -> str:
    sets, hits = found["evaluation_sets"], found["contamination"]
    if not sets and not hits:
        return ""
    about = ""
    if sets:
        header = ["#" * isinstance(value, int) + name.replace("_", " ") for name, value in sets[0].items()]
        about = _table(header, ([_text(_value(value)) for value in row.values()] for row in sets))
    table = _table(["set", "#documents dropped"], ([_text(hit["set"]), f"{hit['documents']:,}"] for hit in hits))
    shown = "".join(_details(_text(hit["set"]), "".join(
        f'{_p(_text(each["origin"]))}<pre dir="auto">{_e(each["ngram"])}</pre>' for each in hit["examples"])) for hit in hits)
    return about + (table + shown if hits else _p("No document was dropped for an evaluation set."))


def _passages(passages: dict[str, Any] | None) -> str:
    if not passages:
        return ""
    lead = (f"<p>Passages of 50 words or more that two or more of the first {passages['documents']:,} training documents "
            f"({_size(passages['bytes'])}) share.</p>")
    return lead + ("".join(_details(
        f"{each['occurrences']:,} times in {_count(each['documents'])}, {each['terms']:,} words: {_text(each['text'][:80])} …",
        f'<pre dir="auto">{_e(each["text"])}</pre>') for each in passages["passages"]) or _p("none"))


def _source(source: dict[str, Any]) -> str:
    return _table(["what", "value"], ([_e(key.replace("_", " ")), _text(_value(value))] for key, value in source.items()))
