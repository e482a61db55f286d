"""Configurations for people: values on one line, meanings, differences."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from cram.config import KEYS, lookup
from cram.schema import Config


def differences(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ."""
    return [(key, lookup(a, key), lookup(b, key)) for key in KEYS if lookup(a, key) != lookup(b, key)]


def show(value: Any) -> str:
    """A value in YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def explain(config: Config) -> str:
    """Every key with its value and meaning, as YAML that can be loaded again; ``*`` marks what is not the default."""
    lines, sections = ["# every key, its value and meaning; * marks a value that differs from the schema's default"], []
    for key, leaf in KEYS.items():
        *path, name = key.split(".")
        for depth, section in enumerate(path):
            if sections[:depth + 1] != path[:depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
        sections = path
        value = lookup(config, key)
        mark = "" if value == leaf.default else f"* (default {show(leaf.default)}) "
        lines.append(f"{'  ' * len(path) + f'{name}: {show(value)}':<44}  # {mark}{leaf.help}")
    return "\n".join(lines)
