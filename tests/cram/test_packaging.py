"""Packaging and set-up: the name clash of `kernels`, what a wheel holds, the rules of import, the two scripts."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement


def python(code, *, cwd, path=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imports(path):
    """(first name, whole name) of every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0], node.module


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return next(WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"]))


def test_our_kernels_and_a_foreign_package_of_that_name_live_together(root, tmp_path):
    """From another folder, with a foreign `kernels` first on the path: ours works, theirs stays theirs."""
    foreign = tmp_path / "kernels"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("OWNER = 'somebody else'\n")
    code = ("import pickle, sys\n"
            "from cram.ops import Documents, attention\n"
            "import kernels\n"
            "assert kernels.OWNER == 'somebody else' and not hasattr(kernels, 'attention')\n"
            "print(attention.__module__, pickle.dumps(Documents(None, None, 8)).hex())")
    name, pickled = python(code, cwd=tmp_path, path=(tmp_path, root)).split()
    assert name == "cram._kernels.attention"
    # the name is stable: a process that never imported cram.ops can load the object
    loaded = python(f"import pickle; print(pickle.loads(bytes.fromhex('{pickled}')).row)", cwd=tmp_path, path=(root,))
    assert loaded == "8"


def test_nothing_imports_the_bare_name_and_data_flows_one_way(root):
    forbidden = {"kernels": {"kernels", "cram", "data_prep"}, "data_prep": {"kernels", "cram", "torch"}, "cram": {"kernels"},
                 "scripts": {"kernels"}}
    checked = 0
    for package, names in forbidden.items():
        for path in sorted((root / package).rglob("*.py")):
            found = {first for first, _ in imports(path)} & names
            assert not found, f"{path} imports {found}"
            checked += 1
    for name in ("budget", "schedule"):
        assert "torch" not in {first for first, _ in imports(root / "cram" / f"{name}.py")}
    assert checked > 20


def test_only_one_door_to_the_kernels(root):
    """ops.py alone; the benchmarks look inside, since launches and machine code are what they measure."""
    users = {path.relative_to(root / "cram") for path in (root / "cram").rglob("*.py") for _, name in imports(path)
             if "_kernels" in name}
    assert {str(path) for path in users if path.parts[0] != "bench"} == {"ops.py"}


def test_wheel_holds_the_kernels_under_our_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"cram", "data_prep"}
    expected = {"cram/_kernels/__init__.py", "cram/_kernels/attention.py", "cram/_configs/demo.yaml", "cram/schema.py"}
    assert expected <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_works_away_from_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = ("import cram, cram.ops, sys; from cram.config import load, SHIPPED; "
            "print(cram._kernels.__file__, SHIPPED, load('demo').name, sep='|')")
    kernels, shipped, name = python(code, cwd=tmp_path, path=(tmp_path / "site",)).split("|")
    assert kernels == f"{tmp_path}/site/cram/_kernels/__init__.py" and shipped == f"{tmp_path}/site/cram/_configs"
    assert name == "demo"


def test_editable_installation_copies_and_exposes_nothing_else(root, tmp_path):
    built = next(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["editable"]))
    archive = zipfile.ZipFile(built)
    assert not [name for name in archive.namelist() if name.startswith(("cram/", "kernels/"))]
    mapping = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))
    assert re.findall(r"map_module\('(\w+)'", mapping) == ["cram", "data_prep"]


def test_constraints_pin_what_the_project_asks_for(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), "exact public versions only"
    pins = dict(line.split("==") for line in lines)
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(text for name in ("test", "eval", "web", "ray") for text in extras[name])]:
        requirement = Requirement(text)
        assert pins[requirement.name.lower().replace("_", "-")] in requirement.specifier, text


@pytest.mark.parametrize("script, stages", [
    ("0_text", 2), ("1_tokenizer", 3), ("2_data", 4), ("3_pretrain", 5), ("4_evaluate", 6), ("5_report", 8)])
def test_stage_scripts_can_be_called_alone(root, tmp_path, script, stages):
    done = subprocess.run([sys.executable, root / "scripts" / f"{script}.py", "demo_gpt", "--dry-run"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == stages and os.listdir(tmp_path) == []


# ---- scripts/run and scripts/test with a stand-in for Python, which notes how it is called

STUB = """#!/bin/bash
case "$1" in
  -c) exit $([ -e "{root}/old" ] && echo 1 || echo 0) ;;
  --version) echo "Python 3.12.0" ;;
esac
echo "$(basename "$0") $*" >> "{root}/calls"
if [ "$2" = pip ] && [ -e "{root}/broken" ]; then echo "no network" >&2; exit 1; fi
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/cram"; fi
exit 0
"""


class Checkout:
    """A copy of the scripts in a fresh tree whose only Python is the stand-in."""

    def __init__(self, source, folder):
        self.folder, self.tools = folder / "a clone", folder / "tools"
        shutil.copytree(source / "scripts", self.folder / "scripts")
        for name in ("pyproject.toml", "constraints.txt", "hatch_build.py"):
            shutil.copy(source / name, self.folder / name)
        self.tools.mkdir()
        for tool in ("bash", "cat", "cksum", "cp", "mkdir", "rm", "dirname", "basename", "uname", "env"):
            (self.tools / tool).symlink_to(shutil.which(tool))
        stub = self.tools / "python3"
        stub.write_text(STUB.format(root=self.folder))
        stub.chmod(stub.stat().st_mode | stat.S_IEXEC)

    def __call__(self, script, *arguments):
        (self.folder / "calls").unlink(missing_ok=True)
        done = subprocess.run([self.folder / "scripts" / script, *arguments], env={"PATH": str(self.tools)}, cwd="/",
                              capture_output=True, text=True)
        calls = self.folder / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def checkout(root, tmp_path):
    return Checkout(root, tmp_path)


def test_scripts_set_up_once_then_start_at_once(checkout):
    done, calls = checkout("run", "demo", "seed=1")
    assert done.returncode == 0, done.stderr
    assert any(call.startswith("python3 -m venv") for call in calls) and calls[-1] == "cram run demo seed=1"
    install = next(call for call in calls if " -m pip install " in call)
    assert f"-c {checkout.folder}/constraints.txt -e {checkout.folder}" in install and "index" not in install
    assert checkout("run")[1] == ["cram run"]
    _, calls = checkout("test", "-x")
    assert any("-e " in call and "[test,eval]" in call for call in calls) and calls[-1] == "python -m pytest -x"
    assert checkout("test", "tests/cram")[1] == ["python -m pytest tests/cram"]
    assert checkout("run")[1] == ["cram run"], "the tests' set-up does not undo the run's"
    (checkout.folder / "constraints.txt").write_text("numpy==2.4.0\n")
    assert any("pip install" in call for call in checkout("run")[1])


def test_failed_installation_says_so_and_is_tried_again(checkout):
    (checkout.folder / "broken").touch()
    done, calls = checkout("run")
    assert done.returncode == 2 and "error: the installation failed" in done.stderr and "cram run" not in calls
    (checkout.folder / "broken").unlink()
    assert checkout("run")[1][-1] == "cram run"


def test_old_python_is_refused_with_the_remedy(checkout):
    (checkout.folder / "old").touch()
    done, _ = checkout("run")
    assert done.returncode == 2 and not (checkout.folder / ".venv").exists()
    assert done.stderr == ("error: no Python 3.11 or newer found; install one (python.org, apt, brew, uv python install), "
                           "or set PYTHON=/path/to/python\n")


def test_broken_environment_is_named(checkout):
    (checkout.folder / ".venv").mkdir()
    done, _ = checkout("run")
    assert done.returncode == 2 and ".venv is no working environment" in done.stderr and "remove it" in done.stderr
