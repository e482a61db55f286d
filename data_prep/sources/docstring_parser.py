"""The docstrings of one Python file, parsed with ``ast`` and never run.

One document is one docstring of a module, class or function, or one literal given to a call such as
``add_newdoc(..., "text")``, cleaned as ``inspect.cleandoc`` does. A class and its methods stay separate
documents: libraries copy whole method docstrings from class to class, which exact deduplication sees
only when they stand alone. Files without a triple quote are skipped: they hold no docstring of length.

Uses the standard library alone, and works as a program too: a JSON list of [path, module] on standard
input, for each a line with a JSON list of [text, dotted name] on standard output.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import warnings
from pathlib import Path

ATTACHING_CALLS = ("add_docstr", "add_newdoc")


def docstrings_of(path: str, module: str) -> list[tuple[str, str]]:
    """(text, dotted name) of every docstring of one file, in source order; none if it is no valid Python."""
    source = Path(path).read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # invalid escapes in other people's code
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return []
    found: list[tuple[str, str]] = []
    _collect(tree, module, found)
    return found


def _collect(node: ast.AST, name: str, found: list[tuple[str, str]]) -> None:
    """Append the docstrings of a node and of all statements in it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            found.append((text, name))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _collect(child, f"{name}.{child.name}", found)
        elif isinstance(child, ast.Expr):
            text = _attached(child.value)
            if text:
                found.append((text, f"{name}:{child.lineno}"))
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):
            _collect(child, name, found)


def _attached(node: ast.expr) -> str:
    """The docstring in ``add_newdoc("module", "name", "text")`` and the like, or ''."""
    if not isinstance(node, ast.Call) or not node.args:
        return ""
    called = getattr(node.func, "id", getattr(node.func, "attr", ""))
    last = node.args[-1]
    literal = isinstance(last, ast.Constant) and isinstance(last.value, str)
    return inspect.cleandoc(last.value) if literal and called.lstrip("_") in ATTACHING_CALLS else ""


if __name__ == "__main__":
    for file in json.load(sys.stdin):
        print(json.dumps(docstrings_of(*file)))
