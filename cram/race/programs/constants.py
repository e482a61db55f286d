"""Run a script with other constants, or only its definitions: for programs whose settings are lines of their source.

The source is read where it lies, changed in memory and compiled under its own name; nothing is written.
"""

import ast
import types


def run(path, constants, calls=None, **given):
    """Execute a script as __main__. constants: name -> value, for every assignment to that name; calls: function name ->
    {keyword: value}. Returns its namespace. ValueError when a constant is not assigned anywhere."""
    tree = _parse(path)
    change = _Change(constants, calls or {})
    tree = ast.fix_missing_locations(change.visit(tree))
    if missing := sorted(set(constants) - change.seen):
        raise ValueError(f"{path} assigns nothing to {', '.join(missing)}; the checkout is another version than expected")
    return _execute(tree, path, given)


def definitions(path, **given):
    """The namespace of a script's imports, classes and functions alone. given: names put there before."""
    tree = _parse(path)
    tree.body = [node for node in tree.body
                 if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))]
    return _execute(tree, path, given)


class _Change(ast.NodeTransformer):
    def __init__(self, constants, calls):
        self.constants, self.calls, self.seen = constants, calls, set()

    def visit_Assign(self, node):
        self.generic_visit(node)
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) and node.targets[0].id in self.constants:
            self.seen.add(node.targets[0].id)
            node.value = ast.copy_location(ast.Constant(self.constants[node.targets[0].id]), node.value)
        return node

    def visit_Call(self, node):
        self.generic_visit(node)
        values = self.calls.get(node.func.id, {}) if isinstance(node.func, ast.Name) else {}
        for keyword in node.keywords:
            if keyword.arg in values:
                keyword.value = ast.copy_location(ast.Constant(values[keyword.arg]), keyword.value)
        return node


def _parse(path):
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read(), filename=str(path))


def _execute(tree, path, given):
    import sys

    module = types.ModuleType("__main__")
    vars(module).update(given, __file__=str(path))
    sys.modules["__main__"] = module        # dataclasses and compilation look their module up
    exec(compile(tree, str(path), "exec"), vars(module))
    return vars(module)
