"""Values and settings in the YAML of a question, each with its place for refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import yaml

from cram.budget import Budget
from cram.config import COMMAND_LINE
from cram.convert import describe, is_null
from cram.errors import CramError

Setting = tuple[str, str, str]     # key, value as text, place
Node = tuple[yaml.Node, str]       # of a key, and its place


def read_mapping(node: yaml.Node, place: str, key: str, path: Path) -> dict[str, Node]:
    if not isinstance(node, yaml.MappingNode):
        raise CramError(f"{place}: {key}: expected 'name: value' lines, got {describe(node)}")
    found: dict[str, Node] = {}
    for name, value in node.value:
        where = f"{path}:{name.start_mark.line + 1}"
        if name.value in found:
            raise CramError(f"{where}: {key}.{name.value} stands there twice; keep one")
        found[name.value] = value, where
    return found


def read_text(node: yaml.Node, place: str, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or is_null(node) or not node.value.strip():
        raise CramError(f"{place}: {key}: expected text, got {describe(node)}")
    return node.value


def read_texts(node: yaml.Node, place: str, key: str) -> list[str]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        raise CramError(f"{place}: {key}: is empty; name a configuration, such as demo")
    return [read_text(each, place, key) for each in nodes]


def read_number(node: yaml.Node, place: str, key: str, whole: bool = False) -> float:
    text = read_text(node, place, key)
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        raise CramError(f"{place}: {key}: expected a {'whole ' * whole}number, got '{text}'") from error


def read_budget(text: str, place: str) -> Budget:
    try:
        return Budget.parse(text)
    except CramError as error:
        raise CramError(f"{place}: {error}") from error


def typed(text: str) -> Setting:
    key, equals, value = text.lstrip("-").partition("=")
    if not equals:
        raise CramError(f"{COMMAND_LINE}: '{text}': expected key=value, such as train.threads=2")
    return key.strip(), value, COMMAND_LINE


def read_settings(node: Optional[yaml.Node], place: str, path: Path, prefix: str = "") -> list[Setting]:
    """Settings of a mapping (dotted keys or sections), or of a list of ``key=value``."""
    if node is None or is_null(node):
        return []
    if isinstance(node, yaml.SequenceNode):
        if node.tag == "both":
            return [setting for part in node.value for setting in read_settings(part, place, path)]
        return [(*typed(read_text(each, place, "settings"))[:2], f"{path}:{each.start_mark.line + 1}") for each in node.value]
    found: list[Setting] = []
    for name, (value, where) in read_mapping(node, place, prefix.rstrip(".") or "settings", path).items():
        key = prefix + name
        found += read_settings(value, where, path, key + ".") if isinstance(value, yaml.MappingNode) else [(key, as_typed(value), where)]
    return found


def as_typed(node: yaml.Node) -> str:
    """A node as it would be typed after ``key=``."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(as_typed(each) for each in node.value)}]"
    return "null" if is_null(node) else node.value
