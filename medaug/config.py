"""From `key=value` words on a command line to one typed `Options`.

Hydra composes the files under `conf/`: schema, groups, experiment, preset, in this order, so that an
experiment says what is modelled and a preset has the last word on size and budget; single keys of the command
line come on top. Every word is checked before anything is composed: a key silently ignored costs a night.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medaug.errors import UserError, printable
from medaug.files import refusal
from medaug.inputs import read_yaml
from medaug.keys import Key, check_values, fits, keys, problem, shown, type_name
from medaug.options import Options
from medaug.paths import expand_paths, without_references
from medaug.runs import process_count, process_rank
from medaug.stages import STAGES, Stage

logger = logging.getLogger(__name__)

# Groups whose files lie in the global package: they choose among the other groups and set any key.
_GLOBAL_GROUPS = ("experiment", "preset")
_OURS = ("medaug", "__main__")  # a stage run by `python -m` is called __main__


def _shipped(folder: str) -> Path:
    """A folder that lies inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def conf_dir() -> Path:
    """The folder of the configuration files."""
    return _shipped("conf")


def manifests_dir() -> Path:
    """The folder of the manifests that experiments name."""
    return _shipped("data_manifests")


def choices(group: str) -> list[str]:
    """What may be chosen for a group, sorted: the file names in `conf/<group>`."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _nearest(word: str, among: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(among), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _accepts(stage: Stage, path: str) -> bool:
    """Whether the stage reads the key, or the whole group, at this full path."""
    node = path.split(".")[0]
    return node in stage.reads or path in stage.reads or node == stage.name


def _full_path(stage: Stage, word: str, known: dict[str, Key]) -> str:
    """The path in `Options` that a stage's command line means by `word`, which may name a whole group."""
    groups = {path.split(".")[0] for path in known}
    path = f"{stage.name}.{word}" if word in stage.own else word
    if path in known or path in groups:
        if _accepts(stage, path):
            return path
        readers = [other for other in STAGES.values() if _accepts(other, path)]
    else:
        readers = [other for other in STAGES.values() if word in other.own]
    if readers:
        names = ", ".join(f"`{reader.name}`" for reader in readers)
        trained = stage.name != "ingest" and [reader.name for reader in readers] == ["train"]
        why = ": the generator is taken from its checkpoint" if trained else ""
        raise UserError(f"{word} is read by {names}, not by `{stage.name}`{why}")
    mine = {
        *stage.own,
        *stage.reads,
        *(path for path in known if _accepts(stage, path) and path.split(".")[0] != stage.name),
    }
    where = f"python -m medaug.{stage.name} --help"
    raise UserError(f"{word}: `{stage.name}` has no such key{_nearest(word, mine)} (all keys: {where})")


def _parse(argument: str, word: str, text: str, key: Key) -> Any:
    """The value of one `key=value`, read by Hydra's grammar; text may stand unquoted whatever is in it."""
    hint, is_text = key.hint, fits("", key.hint)
    texts = _texts(text) if fits([""], hint) else None
    try:
        override = OverridesParser.create().parse_override(f"{word}={text}")
    except HydraException as error:
        if is_text:  # a path with a bracket, a regular expression
            return text
        if texts is not None:  # an umlaut
            return texts
        quotes = f"; put each in quotation marks, as in \"{word}=['a','b']\"" if fits([""], hint) else ""
        raise UserError(f"{argument}: expected {type_name(hint)}{quotes}") from error
    if override.is_sweep_override():
        if is_text:
            return text
        raise UserError(f"{argument}: expected {type_name(hint)}; a list is written {word}=[{text}]")
    value = override.value()
    # A folder called 2024 or 1e3 is text: as typed, not as the number that it could be.
    value = text if is_text and value is not None and not isinstance(value, str) else value
    if texts is not None and not fits(value, hint):  # so in a list: case 010 is not the number 10
        value = texts
    if (wrong := problem(key, value)) is not None:
        raise UserError(f"{argument}: {wrong}")
    return float(text) if hint is float else value


def _texts(text: str) -> list[str] | None:
    """The items of a list as they were typed; None where it is none, or quotation marks or brackets shape it."""
    inside = re.fullmatch(r"\s*\[([^][(){}'\"\\]*)\]\s*", text)
    items = [item.strip() for item in inside[1].split(",")] if inside else []
    return items if items and all(items) else None


def _checked_choice(group: str, text: str) -> str:
    names = choices(group)
    if not names:
        raise UserError(f"{group}={text}: {group} is not a choice; set one of its keys, as in {group}.key=value")
    if text not in names:
        raise UserError(f"{group}={text}: no such {group}{_nearest(text, names)} (all: {', '.join(names)})")
    return text


def parse_arguments(stage: Stage, arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split a command line into group choices and single keys, both by their path in `Options`.

    Raises:
        UserError: a malformed argument, a key given twice or not read by the stage, an unknown choice.
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
            raise UserError(f"{argument}: keys can be set, not added or removed; write {word.lstrip('+~')}=value")
        path = _full_path(stage, word, known)
        if path in given:
            raise UserError(f"{argument}: this key is given twice, first as {given[path]}; leave one of them out")
        given[path] = argument
        if path in known and path not in _GLOBAL_GROUPS:
            values[path] = _parse(argument, word, text, known[path])
        else:
            chosen[path] = _checked_choice(path, text)
    if not chosen.get("experiment") and stage.experiment_needed:
        raise UserError(f"experiment=NAME is missing; the experiments are {', '.join(choices('experiment'))}")
    return chosen, values


def load_options(stage_name: str, arguments: Sequence[str]) -> Options:
    """Compose the options that a stage's command line means.

    Raises:
        UserError: anything on the command line is wrong, or a configuration file does not fit the schema.
    """
    stage = STAGES[stage_name]
    chosen, values = parse_arguments(stage, arguments)
    names = {"experiment": chosen.get("experiment", ""), "preset": chosen.get("preset", "")}
    if names["experiment"] and not names["preset"]:
        file = conf_dir() / "experiment" / f"{names['experiment']}.yaml"
        names["preset"] = chosen["preset"] = read_yaml(file).get("preset", Options.preset)
    ConfigStore.instance().store(name="schema", node=Options)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("config", overrides=[f"{group}={name}" for group, name in chosen.items()])
        config = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Options), composed, names))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"{conf_dir()}: {' '.join(str(error).split())}; mend that file") from error
    for path, value in values.items():
        OmegaConf.update(config, path, without_references(value) if keys()[path].is_path else value, merge=False)
    try:
        options = cast(Options, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    expand_paths(options)
    check_values(options, stage.name)
    return options


def part(options: Options, *names: str) -> dict[str, Any]:
    """Nodes or keys of the options (`"data"`, `"trainer.seed"`) as plain containers: the identity of a run.

    Keys that change no result (where the files lie, how many processes read them) are left out, so that a run
    can be moved and resumed elsewhere.
    """
    wanted = [key for key in keys().values() if key.identity]
    return _nested(options, [k.path for k in wanted if any(k.path == n or k.path.startswith(n + ".") for n in names)])


def _nested(options: Options, paths: Iterable[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path in paths:
        *nodes, leaf = path.split(".")
        target, source = result, options
        for node in nodes:
            target, source = target.setdefault(node, {}), getattr(source, node)
        value = getattr(source, leaf)
        target[leaf] = list(value) if isinstance(value, list) else value
    return result


def help_text(stage_name: str) -> str:
    """What a stage is for, needs and writes, and every key that it takes."""
    stage = STAGES[stage_name]
    lines = [
        f"medaug {stage.name}: {stage.purpose}",
        "",
        f"  needs   {stage.needs}",
        f"  result  {stage.result}",
        f"  usage   python -m medaug.{stage.name} {stage.example} [key=value ...]",
        "          --cfg prints the configuration that the same words give, --help this page",
    ]
    if stage_name == "train":
        lines.append("          --multirun with key=a,b trains every combination, each in a folder below RUNS/sweep")
    former = ""
    for node in (stage.name, *stage.reads):
        names = choices(node)
        rows = [key for path, key in keys().items() if node in {path, path.split(".")[0]}]
        if names and node not in _GLOBAL_GROUPS:
            lines += ["", f"{node}={'|'.join(names)}"]
        elif rows and "." in rows[0].path and node.split(".")[0] != former:
            lines.append("")
        former = node.split(".")[0]
        for key in rows:
            word = key.path.removeprefix(f"{stage.name}.")
            if node in _GLOBAL_GROUPS:
                described = f"{'|'.join(names)}: {key.help}"
            else:
                described = f"{key.help} ({type_name(key.hint)}; {shown(key.default)})"
            lines += [""] if word == "experiment" else []
            lines.append(f"  {word:<28} {described}")
    return "\n".join(lines) + "\n"


class _Printable(logging.Formatter):
    """Messages in which nothing from a file can command the terminal; ours take one line each."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message in its place in the line."""
        ours = record.name.split(".")[0] in _OURS
        record.message = printable(record.message, "" if ours else "\n\t")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """A traceback, which takes many lines."""
        return printable(super().formatException(ei), "\n\t")


def set_up_logging() -> None:
    """Messages of medaug from INFO, of everybody else from WARNING, on standard error."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_Printable("%(message)s"))
    else:
        handler = logging.StreamHandler()  # rich would break paths at its column 80
        handler.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logging.INFO if process_rank() == 0 else logging.WARNING
    # A filter, because libraries set the level of their own loggers when they are imported.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in _OURS)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    # Of libraries about their own future, which a user can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}"


def run(stage_name: str, body: Callable[[Options], None], arguments: Sequence[str]) -> int:
    """Run a stage and return the exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    try:
        if {"--help", "-h"} & set(arguments):
            sys.stdout.write(help_text(stage_name))
            return 0
        if stage_name == "train" and {"--multirun", "-m"} & set(arguments):
            from medaug.sweep import run_sweep

            set_up_logging()
            run_sweep([word for word in arguments if word not in {"--multirun", "-m"}])
            return 0
        words = [word for word in arguments if word != "--cfg"]
        for word in words:
            if re.match(r"[+~]*hydra[./]|objective=", word):
                raise UserError(f"{word}: read by sweeps alone; they are made by `train --multirun`")
        flags = [word for word in words if word.startswith("-")]
        if flags:
            raise UserError(f"{flags[0]}: unknown flag; options are written key=value, and --help lists them")
        options = load_options(stage_name, words)
        if "--cfg" in arguments:
            stage = STAGES[stage_name]
            nodes = _nested(options, [path for path in keys() if _accepts(stage, path)])
            sys.stdout.write(OmegaConf.to_yaml(OmegaConf.create(nodes)))
            return 0
        if (count := process_count()) > 1 and not STAGES[stage_name].shared:
            raise UserError(f"torchrun or srun started {count} processes, and this stage is the work of one; start one")
        set_up_logging()
        if options.preset == "smoke":
            logger.warning("preset=smoke: shows that the parts fit together; what comes out means nothing")
        set_umask(options.umask)
        body(options)
    except UserError as error:
        return _refuse(stage_name, error)
    except OSError as error:  # what a library met at the disk on its own ways
        refused = refusal(error)
        if refused is None:
            raise
        return _refuse(stage_name, refused)
    except KeyboardInterrupt:
        sys.stderr.write(f"medaug {stage_name}: stopped\n")
        return 130
    return 0


def set_umask(umask: str | None) -> None:
    """Keep permissions from every file that this process and its workers write; None: leave them as they are.

    Raises:
        UserError: not an octal number, or one that keeps the files from their owner.
    """
    if umask is None:
        return
    if not re.fullmatch("0*[0-7]{1,3}", umask) or int(umask, 8) & 0o700:
        raise UserError(f"umask={umask}: not an octal number from 000 to 077; 077 leaves files to their owner alone")
    os.umask(int(umask, 8))


def _refuse(stage_name: str, error: UserError) -> int:
    sys.stderr.write(f"medaug {stage_name}: error: {printable(str(error))}\n")
    return 2


def launch(stage_name: str, body: Callable[[Options], None]) -> None:
    """Run a stage on the words of the command line and leave the process with its exit status.

    Args:
        stage_name: a key of `medaug.stages.STAGES`.
        body: the stage itself; it imports what is heavy when it is called, so that `--help` stays quick.
    """
    sys.exit(run(stage_name, body, sys.argv[1:]))
