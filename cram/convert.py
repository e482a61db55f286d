"""YAML nodes to the types of the schema. Plain text decides, never YAML's own guesses."""

from __future__ import annotations

import math
import re
import typing
from typing import Any, Literal, Union

import yaml


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")


def describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing (null)" if is_null(node) else f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


def convert(node: yaml.Node, kind: Any) -> Any:
    """A YAML node as the annotated type; ValueError holding a description of the node where it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union:
        return None if is_null(node) else convert(node, arguments[0])
    if origin is list:
        if isinstance(node, yaml.SequenceNode):
            return [convert(item, arguments[0]) for item in node.value]
        return [convert(node, arguments[0])]
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise ValueError(describe(node))
    text = node.value
    if kind is str or (origin is Literal and text in arguments):
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            number = int(text) if re.fullmatch(r"[+-]?[0-9_]+", text) else float(text)
        except ValueError as error:
            raise ValueError(describe(node)) from error
        if math.isfinite(number) and number == kind(number):
            return kind(number)
    raise ValueError(describe(node))


def expected(kind: Any) -> str:
    """What a field accepts, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union:
        return f"{expected(arguments[0])} or null"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is list:
        return "a list of texts" if arguments[0] is str else "a list of [progress, value] pairs"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
