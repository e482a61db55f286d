"""A race as its file says it: who runs, on what text, for how many seconds, and how it is judged.

    kind: causal                        # causal: bits per byte; masked: loss and accuracy at a fixed mask
    budget: 10m                         # seconds of wall clock, from the start of a competitor's process to its end
    text: [demo, data.max_bytes=...]    # configurations and data.* or tokenizer.* keys, as for cram data
    ours: cram                          # the competitor that the others are compared with
    ladder: [1/3]                       # ours runs whole with these shares of the budget, too
    competitors:
      nanogpt:
        adapter: nanogpt                # cram/race/adapters/<name>.py, or the dotted name of a module of your own
        settings: {n_layer: 4}          # handed to the program as they are written
        tune: {share: 0.1, choices: [{learning_rate: 1e-3}, {learning_rate: 3e-3}]}    # tried before, exempt
        speed: {n_layer: 4}             # cram race --speed: settings laid over the others; or a list: these, then
                                        # what each further one changes about the first

Values of ``settings`` are never interpreted: they reach the command as text.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, Optional, Sequence

import yaml

from cram.budget import Budget
from cram.config import SHIPPED
from cram.errors import CramError

FOLDER = SHIPPED / "races"
TINY_SECONDS, TINY_SEEDS = 20.0, 2
TINY_SHARE = 0.5        # of a tuning and a ladder: less would be over before the first step


@dataclass(frozen=True)
class Entry:
    """A competitor. choices: settings tried at ``share`` of the budget (1: all of it) before the race; speed: () where it has no
    part, else the settings that are timed, then the changes to them that are timed, too."""

    name: str
    adapter: str
    settings: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Mapping[str, str], ...] = ()
    share: float = 0.1
    speed: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Race:
    """What is fixed before anybody starts. budget: seconds; heldout_bytes: of the text that is scored, at most."""

    name: str
    kind: Literal["causal", "masked"]
    budget: float
    entries: Mapping[str, Entry]
    ours: str
    text: tuple[str, ...] = ("demo",)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 2
    seeds: int = 3
    ladder: tuple[float, ...] = ()
    heldout_bytes: int = 1_000_000
    mask_rate: float = 0.15
    blimp: bool = False

    def shares(self, name: str) -> tuple[float, ...]:
        """The shares of the budget that a competitor runs with: the whole, and for ours the ladder."""
        return (1.0, *(self.ladder if name == self.ours else ()))


def shipped() -> list[str]:
    """Names of the races that come with cram."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a path or of a shipped race's name. CramError when there is none."""
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    if (FOLDER / f"{Path(name).stem}.yaml").is_file():
        return FOLDER / f"{Path(name).stem}.yaml"
    near = difflib.get_close_matches(name, shipped(), n=1)
    raise CramError(f"{name}: no such race; " + (f"did you mean '{near[0]}'?" if near else
                                                 f"give a .yaml file or one of: {', '.join(shipped())}"))


def read(path: Path) -> Race:
    """A race from its file. CramError names file, line, key and what is possible."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        raise CramError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML "
                        f"({getattr(error, 'problem', None) or 'not UTF-8'}); write 'key: value' lines") from error
    keys = _mapping(root, path, "the file", {
        "kind": _one_of("causal", "masked"), "budget": _seconds, "competitors": None, "ours": _word, "text": _words,
        "device": _one_of("cpu", "cuda"), "threads": _count, "seeds": _count, "ladder": _shares, "heldout_bytes": _count,
        "mask_rate": _share, "blimp": _flag})
    if missing := [key for key in ("kind", "budget", "competitors", "ours") if key not in keys]:
        raise CramError(f"{path}:1: {missing[0]} is missing; 'cram race --help' names a race to start from")
    node = keys.pop("competitors")
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise CramError(f"{path}:{node.start_mark.line + 1}: competitors: write a name and its adapter for each")
    entries = {}
    for name, value in node.value:
        if name.value in entries:
            raise CramError(f"{path}:{name.start_mark.line + 1}: competitors: {name.value} is there twice; keep one")
        entries[name.value] = _entry(name.value, value, path, text)
    if keys["ours"] not in entries:
        raise CramError(f"{path}: ours: '{keys['ours']}' is none of the competitors; name one of {', '.join(entries)}")
    return Race(name=path.stem, entries=entries, **keys)


def adapt(race: Race, *, budget: Optional[str] = None, seeds: Optional[int] = None, threads: Optional[int] = None,
          tiny: bool = False, text: Sequence[str] = ()) -> Race:
    """The race with what the command line says. text: ``data.*`` and ``tokenizer.*`` settings, laid over the file's."""
    for setting in text:
        if "=" not in setting or not setting.startswith(("data.", "tokenizer.")):
            raise CramError(f"'{setting}': a race takes data.* and tokenizer.* keys only, such as data.source=files; what "
                            "competitors do stands in the race's file")
    changes: dict[str, Any] = {"text": (*race.text, *text)}
    if tiny:
        entries = {name: replace(entry, choices=entry.choices[:2], share=TINY_SHARE) for name, entry in race.entries.items()}
        changes |= {"budget": TINY_SECONDS, "seeds": min(race.seeds, TINY_SEEDS), "entries": entries,
                    "ladder": race.ladder and (TINY_SHARE,), "blimp": False}
    if budget is not None:
        changes["budget"] = _time(budget, "--budget")
    for name, value in (("seeds", seeds), ("threads", threads)):
        if value is not None:
            if value < 1:
                raise CramError(f"--{name} {value}: give a number from 1 up")
            changes[name] = value
    return replace(race, **changes)


def _entry(name: str, node: yaml.Node, path: Path, text: str) -> Entry:
    keys = _mapping(node, path, name, {"adapter": _word, "settings": None, "tune": None, "speed": None})
    if "adapter" not in keys:
        raise CramError(f"{path}:{node.start_mark.line + 1}: {name}: adapter is missing; name one, such as 'adapter: cram'")
    given: dict[str, Any] = {"name": name, "adapter": keys["adapter"]}
    if "settings" in keys:
        given["settings"] = _verbatim(keys["settings"], path, f"{name}.settings", text)
    if "speed" in keys:
        several = keys["speed"].value if isinstance(keys["speed"], yaml.SequenceNode) else [keys["speed"]]
        if not several:
            raise CramError(f"{path}:{keys['speed'].start_mark.line + 1}: {name}.speed: the list is empty; write settings to "
                            "time, or leave speed out")
        given["speed"] = tuple(_verbatim(each, path, f"{name}.speed", text) for each in several)
    if "tune" in keys:
        tune = _mapping(keys["tune"], path, f"{name}.tune", {"share": _share_or_whole, "choices": None})
        choices = tune.get("choices")
        if not isinstance(choices, yaml.SequenceNode) or not choices.value:
            raise CramError(f"{path}:{keys['tune'].start_mark.line + 1}: {name}.tune.choices: list the settings to try")
        given["choices"] = tuple(_verbatim(choice, path, f"{name}.tune.choices", text) for choice in choices.value)
        given |= {"share": tune["share"]} if "share" in tune else {}
    return Entry(**given)


def _verbatim(node: yaml.Node, path: Path, where: str, text: str) -> dict[str, str]:
    """Key -> value as it stands in the file, without YAML's guesses."""
    if not isinstance(node, yaml.MappingNode):
        raise CramError(f"{path}:{node.start_mark.line + 1}: {where}: write 'key: value' pairs")
    return {key.value: value.value if isinstance(value, yaml.ScalarNode)
            else " ".join(text[value.start_mark.index:value.end_mark.index].split()) for key, value in node.value}


def _mapping(node: Any, path: Path, where: str, known: Mapping[str, Optional[Callable]]) -> dict[str, Any]:
    """The values of a mapping, converted; a key with None stays a node."""
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node is not None else 1
        raise CramError(f"{path}:{line}: {where}: write 'key: value' lines; known keys: {', '.join(known)}")
    found: dict[str, Any] = {}
    for key, value in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.value not in known:
            near = difflib.get_close_matches(str(key.value), known, n=1)
            raise CramError(f"{place}: {where}: unknown key '{key.value}'; "
                            + (f"did you mean '{near[0]}'?" if near else f"possible: {', '.join(known)}"))
        if key.value in found:
            raise CramError(f"{place}: {where}: {key.value} is there twice; keep one")
        convert = known[key.value]
        try:
            found[key.value] = convert(value) if convert else value
        except ValueError as error:
            raise CramError(f"{place}: {key.value}: {error}") from error
    return found


def _word(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise ValueError("write one word")
    return node.value


def _one_of(*possible: str) -> Callable[[yaml.Node], str]:
    def convert(node: yaml.Node) -> str:
        if getattr(node, "value", None) not in possible:
            raise ValueError(f"write {' or '.join(possible)}")
        return node.value
    return convert


def _words(node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("write a list, such as [demo, data.max_bytes=20_000_000]")
    return tuple(map(_word, node.value))


def _time(text: str, where: str) -> float:
    budget = Budget.parse(text)
    if budget.kind != "time":
        raise CramError(f"{where}: '{text}' is no time; a race is run against the clock: write seconds or minutes, as 10m")
    return budget.amount


def _seconds(node: yaml.Node) -> float:
    return _time(_word(node), "budget")


def _count(node: yaml.Node) -> int:
    text = _word(node).replace("_", "")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"write a whole number from 1 up, not '{text}'")
    return int(text)


def _share(node: yaml.Node, whole: bool = False) -> float:
    try:
        share = float(Fraction(_word(node)))
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share < 1 and not (whole and share == 1):
        raise ValueError(f"write a share between 0 and 1, such as 1/3{', or 1 for all of it' * whole}, not '{node.value}'")
    return share


def _share_or_whole(node: yaml.Node) -> float:
    return _share(node, whole=True)


def _shares(node: yaml.Node) -> tuple[float, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("write a list of shares of the budget, such as [1/3]")
    return tuple(sorted({_share(each) for each in node.value}))


def _flag(node: yaml.Node) -> bool:
    return _one_of("true", "false")(node) == "true"
