"""Values and settings in the YAML of a question, each with its place for refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import yaml

from cram.budget import Budget
from cram.config import COMMAND_LINE
from cram.convert import describe, is_null
from cram.errors import CramError

Setting = tuple[str, str, str]     # key, value as text, place; a configuration's name has the value NAMED
NAMED, BOTH = "\0", "both"
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
    """``key=value`` of the command line."""
    key, equals, value = text.lstrip("-").partition("=")
    if not equals:
        raise CramError(f"{COMMAND_LINE}: '{text}': expected key=value, such as train.threads=2")
    return key.strip(), value, COMMAND_LINE


def read_settings(node: Optional[yaml.Node], place: str, path: Path, prefix: str = "") -> list[Setting]:
    """Settings of a mapping (dotted keys or sections), or of a list of ``key=value`` and names of configurations."""
    if node is None or is_null(node):
        return []
    if isinstance(node, yaml.SequenceNode):
        if node.tag == BOTH:
            return [setting for part in node.value for setting in read_settings(part, place, path)]
        texts = [(read_text(each, place, "settings"), f"{path}:{each.start_mark.line + 1}") for each in node.value]
        return [(*typed(text)[:2], where) if "=" in text else (text, NAMED, where) for text, where in texts]
    found: list[Setting] = []
    for name, (value, where) in read_mapping(node, place, prefix.rstrip(".") or "settings", path).items():
        key = prefix + name
        found += read_settings(value, where, path, key + ".") if isinstance(value, yaml.MappingNode) else [
            (key, as_typed(value), where)]
    return found


def joined(under: yaml.Node, over: yaml.Node) -> yaml.Node:
    """Two settings, the second laid over the first; both are read later, so a fault in one still names its line."""
    return yaml.SequenceNode(BOTH, [under, over], start_mark=over.start_mark)


def shown(setting: Setting) -> str:
    """As it is typed: ``key=value``, or the name of a configuration."""
    return setting[0] if setting[1] == NAMED else f"{setting[0]}={setting[1]}"


def as_typed(node: yaml.Node) -> str:
    """A node as it would be typed after ``key=``."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(as_typed(each) for each in node.value)}]"
    return "null" if is_null(node) else node.value
