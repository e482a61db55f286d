"""Load a configuration: schema defaults, then YAML files (``extends:`` first), then the command line.

Values are read as text and converted by the type that ``cram/schema.py`` declares, so YAML's guesses
(``on`` is a boolean, ``1e-3`` is a string, ``1:30`` is 90) never reach a field. Every refusal names the file and
line, or the command line. Combinations that cannot work are listed in ``cram/refusals.py``.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence

import yaml

from cram.convert import convert, describe, expected, is_null
from cram.errors import CramError
from cram.schema import Config

COMMAND_LINE = "command line"
SHIPPED = next(folder for folder in (Path(__file__).parent / "_configs", Path(__file__).parents[1] / "configs")
               if folder.is_dir())
NOT_OF_RUNS = ("ablations", "races", "recipe")  # folders of configs/ whose files say something else than how a run goes


@dataclass(frozen=True)
class Key:
    """One leaf of the schema: its type, default and meaning."""

    type: Any
    default: Any
    help: str


def _leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    types = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            yield from _leaves(types[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, Key(types[field.name], default, field.metadata["help"])


KEYS: dict[str, Key] = dict(_leaves(Config))
SECTIONS = {key.rsplit(".", 1)[0] for key in KEYS if "." in key}


def load(path: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file or shipped name (``demo``), or of several laid one over the other
    (``["demo", "filters/fineweb"]``), with ``key=value`` overrides.

    Raises CramError naming file and line (or the command line) and the remedy.
    """
    return load_with_places(path, overrides)[0]


def load_with_places(path: str | Path | Sequence[str | Path],
                     overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """As ``load``; also where each key that is set was set: ``configs/demo.yaml:3`` or ``command line``."""
    from cram.refusals import validate

    config, places = Config(), {}
    paths = [path] if isinstance(path, (str, Path)) else path
    settings = [setting for each in paths for setting in _read(find(each))]
    for key, node, place in [*settings, *map(_parse_override, overrides)]:
        if node is None or key not in KEYS:
            raise CramError(f"{place}: {_unknown(key)}")
        try:
            value = convert(node, KEYS[key].type)
        except ValueError as error:
            raise CramError(f"{place}: {key}: expected {expected(KEYS[key].type)}, got {error}") from error
        assign(config, key, value)
        places[key] = place
    validate(config, places)
    return config, places


def find(path: str | Path) -> Path:
    """The file of a path or of a shipped configuration's name (``demo`` or ``configs/demo.yaml``)."""
    given = Path(path)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    shipped = _shipped()
    name = given.as_posix().removesuffix(".yaml").removeprefix("configs/")
    if name in shipped:
        return _short(shipped[name])
    here = Path(f"{path}.yaml")
    near = [str(here)] if here.is_file() else difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"give a .yaml file or one that is shipped: {', '.join(shipped)}"
    raise CramError(f"{path}: no such configuration; {hint}")


def _shipped() -> dict[str, Path]:
    """Name -> file: demo, filters/fineweb ...; without the questions of ``cram ablate`` and the races."""
    files = sorted(SHIPPED.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {file.relative_to(SHIPPED).with_suffix("").as_posix(): file for file in files
            if file.parent.name not in NOT_OF_RUNS}


def is_shipped(name: str) -> bool:
    """Whether this is the name of a shipped configuration: demo, filters/fineweb ..."""
    return name in _shipped()


def assign(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def keys_under(names: Iterable[str]) -> list[str]:
    """The dotted leaves named by keys or whole sections. KeyError for a name the schema lacks."""
    leaves = []
    for name in names:
        found = [key for key in KEYS if key == name or key.startswith(name + ".")]
        if not found:
            raise KeyError(name)
        leaves += found
    return leaves


def to_dict(config: Config) -> dict:
    """Nested plain dictionary; JSON-ready."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """The inverse of ``to_dict``, for a ``config.json`` written earlier. Raises CramError for an unknown key."""
    config = Config()

    def fill(section: Any, entries: dict, prefix: str) -> None:
        for name, value in entries.items():
            key = prefix + name
            if key in SECTIONS and isinstance(value, dict):
                fill(getattr(section, name), value, key + ".")
            elif key in KEYS:
                setattr(section, name, copy.deepcopy(value))
            else:
                raise CramError(_unknown(key))

    fill(config, values, "")
    return config


# ---- reading


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _read(path: Path, chain: tuple[Path, ...] = ()) -> Iterator[tuple[str, yaml.Node, str]]:
    """(dotted key, node, place) of a file, those of the file it extends first."""
    if path.resolve() in chain:
        raise CramError(f"{path}: extends itself through {' -> '.join(file.name for file in chain)}; remove one 'extends:'")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise CramError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise CramError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: "
                        f"{getattr(error, 'problem', None) or 'unreadable'}; write 'key: value' lines") from error
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise CramError(f"{path}:1: expected 'key: value' lines, got {describe(root)}")
    for name, value in root.value:
        if name.value == "extends":
            place = f"{path}:{name.start_mark.line + 1}"
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not bases or not all(isinstance(base, yaml.ScalarNode) and base.value for base in bases):
                raise CramError(f"{place}: extends: expected the path of a YAML file, or a list of them, got {describe(value)}")
            for base in (node.value for node in bases):
                yield from _read(_extended(base, path, place), (*chain, path.resolve()))
    seen: dict[str, str] = {}
    for key, node, place in _flatten(root, path):
        if key in seen:
            raise CramError(f"{place}: {key} was already set in line {seen[key].rsplit(':', 1)[1]}; keep one")
        seen[key] = place
        yield key, node, place


def _extended(base: str, path: Path, place: str) -> Path:
    """The file that ``extends: base`` in ``path`` means: beside it, or one that is shipped."""
    beside = path.parent / base
    if beside.is_file():
        return beside
    shipped = _shipped()
    if base not in shipped:
        raise CramError(f"{place}: extends: no file {beside}; the path is relative to {path.name}, or the name of a shipped "
                        f"configuration: {', '.join(shipped)}")
    return _short(shipped[base])


def _flatten(mapping: yaml.MappingNode, path: Path, prefix: str = "") -> Iterator[tuple[str, Optional[yaml.Node], str]]:
    for name, value in mapping.value:
        place = f"{path}:{name.start_mark.line + 1}"
        if not isinstance(name, yaml.ScalarNode):
            raise CramError(f"{place}: expected a key, got {describe(name)}")
        key = prefix + name.value
        if key == "extends":
            continue
        if key in SECTIONS:
            if isinstance(value, yaml.MappingNode):
                yield from _flatten(value, path, key + ".")
            elif not is_null(value):
                raise CramError(f"{place}: {key}: is a section with keys of its own, got {describe(value)}")
        else:
            yield key, value, place


def _parse_override(text: str) -> tuple[str, Optional[yaml.Node], str]:
    """``a.b=c`` or ``--a.b=c``."""
    key, equals, value = text.lstrip("-").partition("=")
    key = key.strip()
    if not equals:
        raise CramError(f"{COMMAND_LINE}: '{text}': expected key=value, such as train.threads=2")
    if key not in KEYS:
        return key, None, COMMAND_LINE
    node = yaml.ScalarNode("tag:yaml.org,2002:str", value)
    if typing.get_origin(KEYS[key].type) is list:
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader) or node
        except yaml.YAMLError as error:
            raise CramError(f"{COMMAND_LINE}: {key}: expected a list such as '{key}=[a, b]', got '{value}'") from error
    return key, node, COMMAND_LINE


def _unknown(key: str) -> str:
    if key in SECTIONS:
        return f"{key} is a section; set one of its keys, such as {next(name for name in KEYS if name.startswith(key + '.'))}"
    names = [*KEYS, *sorted(SECTIONS)]
    last = {name: name.rsplit(".", 1)[-1] for name in names}
    wanted = key.rsplit(".", 1)[-1]
    near = [name for name in names if last[name] == wanted] or difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    near = near or [name for match in difflib.get_close_matches(wanted, set(last.values()), n=1)
                    for name in names if last[name] == match]
    near.sort(key=lambda name: -difflib.SequenceMatcher(None, name, key).ratio())
    hint = f"did you mean '{near[0]}'?" if near else "'cram config' lists every key"
    return f"unknown key '{key}'; {hint}"
