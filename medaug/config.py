"""Turns the `key=value` words of a command line into one typed `Options`.

Hydra composes the files under `conf/` in this order: schema, groups, experiment, preset. So the experiment defines
what is modelled, and the preset overrides its size and budget. Single keys of the command line override everything.
Every word is checked before anything is composed, because a key that is silently ignored wastes a whole training.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medaug.entries import OWN
from medaug.errors import UserError, listed
from medaug.inputs import read_yaml
from medaug.keys import Key, check_values, fits, keys, refuse, type_name, value_of
from medaug.options import Options
from medaug.paths import conf_dir, conf_files, expand_paths, expanded, own_conf_dir, without_references
from medaug.stages import STAGES, Stage
from medaug.tables import entry_defaults, entry_names, no_such

logger = logging.getLogger(__name__)

# Groups whose files can choose among the other groups and set any key (Hydra's global package).
GLOBAL_GROUPS = ("experiment", "preset")


def choices(group: str) -> list[str]:
    """The choices of a group, sorted: the names of its files (`conf_files`) and the entries of the group's table."""
    names = {path.stem for path in conf_files(group)}
    key = _entry_key(group)
    return sorted(names.union(entry_names(key.choices.table)) if key is not None else names)


def _entry_key(group: str) -> Key | None:
    """The key of a group that chooses an entry of a table, such as sampler.name; None: the group has none."""
    found = (keys().get(path) for path in (f"{group}.name", f"{group}.source"))
    return next((key for key in found if key is not None and key.choices.table), None)


def _store_entry(group: str, name: str) -> None:
    """Let Hydra find an entry that has no file, with the defaults that it brings."""
    key = _entry_key(group)
    if key is None or conf_files(group, name):
        return
    known = [path.partition(".")[2] for path in keys() if path.startswith(f"{group}.")]
    node = {key.path.partition(".")[2]: name, **entry_defaults(key.choices.table, name, known)}
    ConfigStore.instance().store(group=group, name=name, node=node)


def store_schema() -> None:
    """Let Hydra find the schema, and medaug's entries of the tables that have no file in `conf`."""
    ConfigStore.instance().store(name="schema", node=Options)
    for group in (field.name for field in fields(Options)):
        if (key := _entry_key(group)) is not None:
            for name in OWN[key.choices.table]:
                _store_entry(group, name)


def _full_path(stage: Stage, word: str, known: Mapping[str, Key]) -> str:
    """The path in `Options` of a word on a stage's command line; the word may name a whole group."""
    groups = {path.split(".")[0] for path in known}
    path = f"{stage.name}.{word}" if word in stage.own else word
    if path in known or path in groups:
        if stage.accepts(path):
            return path
        readers = [other for other in STAGES.values() if other.accepts(path)]
    else:
        readers = [other for other in STAGES.values() if word in other.own]
    if readers:
        names = listed([f"`{reader.name}`" for reader in readers])
        trained = stage.name != "ingest" and [reader.name for reader in readers] == ["train"]
        why = ": the generator is loaded from its checkpoint" if trained else ""
        raise UserError(f"{word} is read by {names}, not by `{stage.name}`{why}")
    mine = {
        *stage.own,
        *stage.reads,
        *(path for path in known if stage.accepts(path) and path.split(".")[0] != stage.name),
    }
    where = f"medaug {stage.name} --help"
    raise no_such(f"{word}: `{stage.name}` has no such key", word, mine, f"(all keys: {where})")


def _parse(argument: str, word: str, text: str, key: Key) -> Any:
    """The value of one `key=value`, parsed by Hydra's grammar; text needs no quotation marks, whatever it contains."""
    hint, is_text = key.hint, fits("", key.hint)
    texts = _texts(text) if fits([""], hint) else None
    try:
        override = OverridesParser.create().parse_override(f"{word}={text}")
    except HydraException as error:
        if is_text:  # a path with a bracket, a regular expression
            return text
        if texts is not None:  # an umlaut
            return texts
        quotes = f"put each in quotation marks, as in \"{word}=['a','b']\"" if fits([""], hint) else ""
        raise UserError(f"{argument}: expected {type_name(hint)}", quotes) from error
    if override.is_sweep_override():
        if is_text:
            return text
        raise UserError(f"{argument}: expected {type_name(hint)}", f"a list is written {word}=[{text}]")
    value = override.value()
    # A folder called 2024 or 1e3 stays the text that was typed.
    value = text if is_text and value is not None and not isinstance(value, str) else value
    if texts is not None and not fits(value, hint):  # the same in a list: case 010 is not the number 10
        value = texts
    refuse(key, value, argument)
    return float(text) if hint is float else value


def _texts(text: str) -> list[str] | None:
    """The items of a list as they were typed; None if it is not a list, or has quotation marks or inner brackets."""
    inside = re.fullmatch(r"\s*\[([^][(){}'\"\\]*)\]\s*", text)
    items = [item.strip() for item in inside[1].split(",")] if inside else []
    return items if items and all(items) else None


def _checked_choice(group: str, text: str) -> str:
    names = choices(group)
    if not names:
        raise UserError(f"{group}={text}: {group} is not a choice", f"set one of its keys, as in {group}.key=value")
    if text not in names:
        raise no_such(f"{group}={text}: no such {group}", text, names, f"(all: {', '.join(names)})")
    own = own_conf_dir()
    mine = own / group / f"{text}.yaml" if own is not None else None
    key = _entry_key(group)
    if mine in (files := conf_files(group, text)) and (
        len(files) > 1 or (key is not None and text in entry_names(key.choices.table))
    ):
        raise UserError(f"medaug has this {group} as well", "rename the file", path=mine)
    _store_entry(group, text)
    return text


def parse_arguments(stage: Stage, arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split a command line into group choices and single keys, both by their path in `Options`.

    Raises:
        UserError: an argument is malformed, a key is given twice or not read by the stage, or a choice is unknown.
    """
    known = keys()
    chosen: dict[str, str] = {}
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for argument in arguments:
        word, equals, text = argument.partition("=")
        if not equals or not word:
            raise UserError(f"{argument}: expected key=value")
        if word[0] in "+~":
            raise UserError(f"{argument}: keys can be set, not added or removed", f"write {word.lstrip('+~')}=value")
        path = _full_path(stage, word, known)
        if path in given:
            raise UserError(f"{argument}: this key is given twice, first as {given[path]}", "leave one of them out")
        given[path] = argument
        if path in known and path not in GLOBAL_GROUPS:
            values[path] = _parse(argument, word, text, known[path])
        else:
            chosen[path] = _checked_choice(path, text)
    if not chosen.get("experiment") and stage.experiment_needed:
        raise UserError("experiment=NAME is missing", f"the experiments are {', '.join(choices('experiment'))}")
    return chosen, values


def trained_preset(runs: Path, experiment: str) -> str | None:
    """The preset that an experiment was trained with; None if there is no training, or it did not record its preset.

    Raises:
        UserError: the training's config.yaml cannot be read.
    """
    path = runs / experiment / "train" / "config.yaml"
    return read_yaml(path, "restore it, or give preset=NAME").get("preset") if os.path.lexists(path) else None


def _usual_preset(stage: Stage, experiment: str, values: dict[str, Any]) -> str:
    """The preset to use if the command line does not name one."""
    own = read_yaml(conf_files("experiment", experiment)[0])
    if stage.continues:
        runs = expanded("runs", str(values.get("runs", own.get("runs", Options.runs))))
        if (preset := trained_preset(Path(runs), experiment)) is not None:
            return _checked_choice("preset", str(preset))
    return str(own.get("preset", Options.preset))


@functools.cache
def _composed(conf: tuple[Path, Path | None], choices: tuple[str, ...], experiment: str, preset: str) -> DictConfig:
    """Compose the configuration files for these choices of groups; cached in the process, so copy it.

    Args:
        conf: the folders of medaug's and of the user's files.
        choices: `group=name` for each group that is chosen.
        experiment: name of the experiment.
        preset: name of the preset.
    """
    store_schema()
    own = [] if conf[1] is None else [f"hydra.searchpath=[{json.dumps(conf[1].as_uri())}]"]
    with initialize_config_dir(str(conf[0]), version_base="1.3"):
        composed = compose("config", overrides=[*choices, *own])
    names = {"experiment": experiment, "preset": preset}
    return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Options), composed, names))


def load_options(stage_name: str, arguments: Sequence[str]) -> Options:
    """Compose and check the options for a stage's command line.

    Raises:
        UserError: a word on the command line is wrong, or a configuration file does not fit the schema.
    """
    stage = STAGES[stage_name]
    chosen, values = parse_arguments(stage, arguments)
    experiment = chosen.get("experiment", "")
    if experiment and not chosen.get("preset"):
        chosen["preset"] = _usual_preset(stage, experiment, values)
    try:
        words = tuple(f"{group}={name}" for group, name in chosen.items())
        config = copy.deepcopy(_composed((conf_dir(), own_conf_dir()), words, experiment, chosen.get("preset", "")))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(" ".join(str(error).split()), "correct that file", path=conf_dir()) from error
    for path, value in values.items():
        OmegaConf.update(config, path, without_references(value) if keys()[path].is_path else value, merge=False)
    try:
        options = cast(Options, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    expand_paths(options)
    check_values(options, stage.name, values)
    for path in (*chosen, *values):
        needed = stage.only_with.get(path.split(".")[0])
        if needed is not None and value_of(options, needed) is None:
            raise UserError(f"{path}: has no effect without {needed}", f"set {needed}, or leave {path} out")
    return options


def part(options: Options, *names: str) -> dict[str, Any]:
    """Nodes or keys of the options (`"data"`, `"trainer.seed"`) as plain containers, for the identity of a run.

    Keys that change no result (where the files are, how many processes read them) are left out, so that a run can be
    moved and resumed elsewhere. So are keys that earlier versions did not have, if they have their default value.
    """
    wanted = [
        key
        for key in keys().values()
        if (value_of(options, key.path) != key.default if key.identity is None else key.identity)
    ]
    return nested(options, [k.path for k in wanted if any(k.path == n or k.path.startswith(n + ".") for n in names)])


def nested(options: Options, paths: Iterable[str]) -> dict[str, Any]:
    """The values at these paths of the options, as nested dictionaries."""
    result: dict[str, Any] = {}
    for path in paths:
        *nodes, leaf = path.split(".")
        target, source = result, options
        for node in nodes:
            target, source = target.setdefault(node, {}), getattr(source, node)
        value = getattr(source, leaf)
        target[leaf] = list(value) if isinstance(value, list) else value
    return result
