"""What was decided after the trials: ``decisions.yaml`` beside the records, since no record can know it.

    optimizer:                  # a question, or the label of one of its trials
      kept: muon                # an arm; null (or none) for nothing
      why: best at every budget
      order: 1                  # its place in the log and in the recipe; without: by date, after those with one
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

import yaml

from cram.convert import describe, is_null
from cram.errors import CramError
from cram.insight.ablate.nodes import read_mapping, read_number, read_text

FILE = "decisions.yaml"
KEYS = ("kept", "why", "order")


@dataclass(frozen=True)
class Decision:
    """kept: an arm's name, None for nothing."""

    kept: Optional[str]
    why: str
    order: Optional[float]


def read_decisions(path: Path, labels: Mapping[str, str], arms: Mapping[str, Sequence[str]]) -> dict[str, Decision]:
    """Question -> decision. labels: what names a question, and which; arms: question -> names. CramError with file and line
    for what names no trial, no arm, or a question twice."""
    found: dict[str, Decision] = {}
    for label, (node, place) in read_mapping(_root(path), f"{path}:1", "decisions", path).items():
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1)
            raise CramError(f"{place}: '{label}' is no trial recorded here; "
                            + (f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(labels))}"))
        name = labels[label]
        if name in found:
            raise CramError(f"{place}: '{label}': question {name} was already decided above; keep one")
        entries = read_mapping(node, place, label, path)
        for key, (_, where) in entries.items():
            if key not in KEYS:
                raise CramError(f"{where}: {label}: unknown key '{key}'; a decision has: {', '.join(KEYS)}")
        if "kept" not in entries:
            raise CramError(f"{place}: {label}: 'kept:' is missing; name an arm, or null for nothing")
        why, order = entries.get("why"), entries.get("order")
        found[name] = Decision(_kept(*entries["kept"], label, arms[name]),
                               " ".join(read_text(*why, f"{label}.why").split()) if why else "",
                               read_number(*order, f"{label}.order") if order else None)
    return found


def _kept(node: yaml.Node, place: str, label: str, arms: Sequence[str]) -> Optional[str]:
    """The arm. Plain ``none`` is nothing, unless an arm is called so: then it must be told which is meant."""
    if is_null(node):
        return None
    name = read_text(node, place, f"{label}.kept")
    plain = node.style is None
    if name.lower() == "none" and plain:
        if name in arms:
            raise CramError(f"{place}: {label}.kept: an arm is called '{name}' too; write null for nothing, or \"{name}\" in "
                            "quotes for the arm")
        return None
    if name not in arms:
        near = difflib.get_close_matches(name, arms, n=1)
        raise CramError(f"{place}: {label}.kept: '{name}' is no arm of this question; "
                        + (f"did you mean '{near[0]}'?" if near else f"its arms: {', '.join(arms)}; null for nothing"))
    return name


def _root(path: Path) -> yaml.Node:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise CramError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise CramError(f"{path}: cannot be read ({error.strerror}); make it a readable file, or remove it") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise CramError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: "
                        f"{getattr(error, 'problem', None) or 'unreadable'}; write 'label: {{kept: ..., why: ...}}'") from error
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode):
        raise CramError(f"{path}:1: expected 'label: ...' lines, got {describe(root)}")
    return root
