"""installed-docs: what is found, in a fixed order, without importing anything."""

import ast
import email.message
import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.sources import docstrings
from data_prep.sources.docstrings import find_package, read_docstrings

MODULE = '''
"""The module's text."""
import nowhere_to_be_found
raise SystemExit("imported!")

class Outer(Base):
    """A class.

        Indented.
    """
    def method(self):
        """A method."""
        def inner():
            """A function in a method."""

    if True:
        async def late(self):
            r"""An async \\method."""

try:
    pass
except ValueError:
    def handler():
        """In a handler."""

add_newdoc("numpy", "array", """
    Attached text.
    """)
torch._C._add_docstr(x, """Attached too.""")
print("""Not a docstring.""")
add_docstr(x, """A {template}""".format(template=1))
"""Neither is this."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package named made_up_package in a folder that Python looks in."""
    folder = tmp_path / "site" / "made_up_package"
    (folder / "tests").mkdir(parents=True)
    (folder / "sub").mkdir()
    (folder / "__init__.py").write_text('"""Top."""\n')
    (folder / "sub" / "__init__.py").write_text('"""Sub."""\n')
    (folder / "sub" / "module.py").write_text(MODULE)
    (folder / "latin.py").write_bytes('# -*- coding: latin-1 -*-\n"""Café."""\n'.encode("latin-1"))
    (folder / "broken.py").write_text('"""Python 2."""\nprint "x"\n')
    (folder / "plain.py").write_text('"A docstring without triple quotes is too short to matter."\n')
    for skipped in ("tests/helper.py", "test_it.py", "conftest.py"):
        (folder / skipped).write_text('"""Only for tests."""\n')
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_what_is_found(package):
    found = list(read_docstrings([find_package("made_up_package")]))
    name = "made_up_package"
    assert found == [
        ("Top.", name),
        ("Café.", f"{name}.latin"),
        ("Sub.", f"{name}.sub"),
        ("The module's text.", f"{name}.sub.module"),
        ("A class.\n\nIndented.", f"{name}.sub.module.Outer"),
        ("A method.", f"{name}.sub.module.Outer.method"),
        ("A function in a method.", f"{name}.sub.module.Outer.method.inner"),
        ("An async \\method.", f"{name}.sub.module.Outer.late"),
        ("In a handler.", f"{name}.sub.module.handler"),
        ("Attached text.", f"{name}.sub.module:26"),
        ("Attached too.", f"{name}.sub.module:29"),
    ]
    assert name not in sys.modules


def test_part_of_a_package(package):
    name = "made_up_package.sub"
    assert [origin for _, origin in read_docstrings([find_package(name)])][:2] == [name, f"{name}.module"]
    assert len(list(read_docstrings([find_package("made_up_package.sub.module")]))) == 8
    assert name not in sys.modules


def test_two_processes_give_the_same_in_the_same_order(package, monkeypatch):
    for number in range(60):
        path = package / f"m{number:02d}.py"
        path.write_text(f'"""Module {number}."""\n' + '\ndef f():\n    """\u00e9."""\n' * (number % 7))
    one = list(read_docstrings([find_package("made_up_package")]))
    monkeypatch.setattr(docstrings, "MIN_FILES_FOR_TWO", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    started = []
    start = docstrings._start
    monkeypatch.setattr(docstrings, "_start", lambda files: started.append(len(files)) or start(files))
    assert list(read_docstrings([find_package("made_up_package")])) == one
    assert len(started) == 2 and abs(started[0] - started[1]) <= 1
    reader = read_docstrings([find_package("made_up_package")])      # stopping early leaves no process behind
    assert next(reader) == one[0]
    reader.close()


def test_a_reader_process_that_dies_is_named(package, monkeypatch):
    monkeypatch.setattr(docstrings, "MIN_FILES_FOR_TWO", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    real = docstrings.source_files
    monkeypatch.setattr(docstrings, "source_files", lambda found: [*real(found), ("/nowhere/gone.py", "gone")])
    with pytest.raises(DataError, match=r"ended early \(exit code 1\) at /nowhere/gone.py"):
        list(read_docstrings([find_package("made_up_package")]))


def test_against_the_running_documentation_of_a_module():
    """Oracle: every docstring Python itself shows for the functions of a standard module is found."""
    module = importlib.import_module("statistics")
    found = {text for text, _ in read_docstrings([find_package("statistics")])}
    functions = [value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == "statistics"]
    shown = {inspect.getdoc(function) for function in functions if function.__doc__}
    assert len(shown) > 20 and shown <= found
    tree = ast.parse(Path(module.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    assert found == {ast.get_docstring(node) for node in nodes if ast.get_docstring(node)}


def test_missing_packages(monkeypatch):
    with pytest.raises(DataError, match=r"data\.packages: 'not_there' is not installed; install it with: pip install not_"):
        find_package("not_there")
    with pytest.raises(DataError, match=r"data\.packages: 'not_there\.sub' is not installed"):
        find_package("not_there.sub")
    with pytest.raises(DataError, match=r"data\.packages: '' is not installed"):
        find_package("")
    with pytest.raises(DataError, match=r"data\.packages: 'sys' has no Python source to read"):
        find_package("sys")
    with pytest.raises(DataError, match=r"data\.packages: 'json\.nothing' has no Python source"):
        find_package("json.nothing")
    monkeypatch.setitem(sys.modules, "half_made", types.ModuleType("half_made"))
    with pytest.raises(DataError, match="'half_made' is not installed"):
        find_package("half_made")


@pytest.mark.parametrize("headers, licence", [
    ({"License-Expression": "MIT", "License": "old words"}, "MIT"), ({"License": " BSD\nand its whole text"}, "BSD"),
    ({"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache Software License"), ({}, None)])
def test_licence_as_the_package_states_it(headers, licence):
    metadata = email.message.Message()
    for name, value in headers.items():
        metadata[name] = value
    assert docstrings._licence(metadata) == licence
    assert find_package("numpy").licence and find_package("numpy").version
