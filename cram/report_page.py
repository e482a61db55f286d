"""A page as a list of blocks, rendered as Markdown and as self-contained HTML.

Blocks are tuples: ("title" | "section", text), ("text", text), ("table", header, rows),
("code", text), ("figure", name, svg, alternative text), ("details", summary, blocks),
("facts", [(value, label, note), ...]): key figures in a strip, ("verdict", "good" | "bad" | "unsure", text),
("links", [(text, relative address), ...]).
"""

from __future__ import annotations

import html
import re
from typing import Iterable

from cram.drawing import INK

NUMBER = r"[−\d.,%]*"  # columns of these are set flush right
STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #f4f4f2; --dim: #666; --good: #2e7d32; --bad: #b3261e;
  --unsure: #8a6100; }
@media screen and (prefers-color-scheme: dark) { :root { --line: #444; --soft: #22252a; --dim: #999; --good: #7cc47f;
  --bad: #ff8a80; --unsure: #e0b352; } body { background: #16181c; color: #ddd; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
@media screen and (min-width: 50rem) { .wide { width: max-content; max-width: min(72rem, 50vw + 21rem); } }
@media screen and (max-width: 30rem) { th, td { padding-right: .6rem; } th.n { white-space: normal; } }
.wide + .wide { margin-top: 1.2rem; } th, td { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:last-child:not(.n) { overflow-wrap: anywhere; min-width: 6rem; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1rem 0; overflow-x: auto; } svg { width: 100%; min-width: 20.5rem; height: auto; display: block; }
summary { cursor: pointer; } a { color: inherit; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; padding: 0; margin: 1rem 0;
  list-style: none; } .facts li { background: var(--soft); border-radius: .4rem; padding: .5rem .7rem; }
.facts b { display: block; font-size: 1.3rem; line-height: 1.3; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts small { color: var(--dim); display: block; }
.verdict { border-left: .3rem solid var(--unsure); background: var(--soft); padding: .5rem .8rem; }
.verdict b { color: var(--unsure); } .good { border-color: var(--good); } .good b { color: var(--good); }
.bad { border-color: var(--bad); } .bad b { color: var(--bad); }
@media print { :root { color-scheme: light; } @page { margin: 16mm; } body { max-width: none; padding: 0; font-size: 11pt; }
  figure, pre, tr, .facts, .verdict { break-inside: avoid; } h1, h2, summary { break-after: avoid; }
  .wide, figure { overflow: visible; } table { font-size: 8.5pt; } th, td { padding-right: .5rem; }
  svg { min-width: 0; max-height: 18cm; } details::details-content { content-visibility: visible; height: auto; }
  .facts li, pre, .verdict { background: none; border: 1px solid #ccc; } }
"""
VERDICTS = {"good": "\u2713", "bad": "\u2717", "unsure": "?"}  # said in words beside the colour, for who sees none


def to_markdown(blocks: Iterable[tuple]) -> str:
    """GitHub-flavoured Markdown; figures are files beside the page."""
    parts = []
    for kind, *rest in blocks:
        if kind in ("title", "section"):
            parts.append(f"{'#' if kind == 'title' else '##'} {rest[0]}")
        elif kind == "text":
            parts.append(_escape(rest[0]))
        elif kind == "table":
            header, rows = rest
            lines = [header, ["---"] * len(header), *rows]
            parts.append("\n".join("| " + " | ".join(_escape(cell).replace("|", "\\|") if line is not lines[1] else cell
                                                     for cell in line) + " |" for line in lines))
        elif kind == "code":
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", rest[0])), default=0))
            parts.append(f"{fence}\n{rest[0]}\n{fence}")
        elif kind == "figure":
            parts.append(f"![{rest[2]}]({rest[0]}.svg)")
        elif kind == "facts":
            parts.append("\n".join(f"- **{_escape(value)}** {_escape(label)}{f' ({_escape(note)})' if note else ''}"
                                   for value, label, note in rest[0]))
        elif kind == "verdict":
            parts.append(f"> {VERDICTS[rest[0]]} {_escape(rest[1])}")
        elif kind == "links":
            parts.append(" · ".join(f"[{_escape(text)}]({address})" for text, address in rest[0]))
        else:
            parts.append(f"<details><summary>{html.escape(rest[0])}</summary>\n\n{to_markdown(rest[1])}\n</details>")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Iterable[tuple], title: str) -> str:
    """One file that asks nothing of the network, for narrow and wide screens, light and dark."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{_body(blocks)}\n</body></html>\n")


def _body(blocks: Iterable[tuple]) -> str:
    parts = []
    for kind, *rest in blocks:
        if kind in ("title", "section", "text"):
            tag = {"title": "h1", "section": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{html.escape(rest[0])}</{tag}>")
        elif kind == "table":
            header, rows = rest
            side = [' class="n"' if all(re.fullmatch(NUMBER, cell) for cell in column) else "" for column in zip(*rows)]
            lines = ["".join(f"<{tag}{at}>{html.escape(cell)}</{tag}>" for cell, at in zip(line, side or [""] * len(line)))
                     for line, tag in [(header, "th"), *((row, "td") for row in rows)]]
            parts.append('<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>")
        elif kind == "code":
            parts.append(f"<pre>{html.escape(rest[0])}</pre>")
        elif kind == "figure":
            drawing = rest[1][rest[1].index("<svg"):].replace(INK, "currentColor")
            parts.append(f'<figure role="img" aria-label="{html.escape(rest[2])}" tabindex="0">{drawing}</figure>')
        elif kind == "facts":
            parts.append('<ul class="facts">' + "".join(
                f"<li><small>{html.escape(label)}</small><b>{html.escape(value)}</b>"
                + (f"<small>{html.escape(note)}</small>" if note else "") + "</li>" for value, label, note in rest[0])
                + "</ul>")
        elif kind == "verdict":
            parts.append(f'<p class="verdict {rest[0]}"><b>{VERDICTS[rest[0]]}</b> {html.escape(rest[1])}</p>')
        elif kind == "links":
            parts.append("<p>" + " · ".join(f'<a href="{html.escape(address)}">{html.escape(text)}</a>'
                                            for text, address in rest[0]) + "</p>")
        else:
            parts.append(f"<details><summary>{html.escape(rest[0])}</summary>{_body(rest[1])}</details>")
    return "\n".join(parts)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + c if c in "\\`*_[]<>" else c for c in text).replace("\n", " ")
