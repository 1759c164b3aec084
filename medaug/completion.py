"""Completion of command lines in bash, zsh and fish: stages, keys, choices, experiments.

Like `medaug.options`, this module does not import torch or numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

from medaug.config import choices
from medaug.keys import Key, keys, names
from medaug.stages import STAGES, Stage
from medaug.tables import no_such

FILES = ":files"
"""The answer that leaves the completion to the shell, which knows files."""

_BASH = """_medaug() {
    local line=${COMP_LINE:0:COMP_POINT} replies word prefix=
    word=${line##*[[:space:]]}
    mapfile -t replies < <(command medaug completion line "$line" 2>/dev/null)
    if [[ ${replies[0]} == :files ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "${word#*=}")
        return
    fi
    # Where = parts words, readline replaces only what follows it.
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && prefix=${word%%=*}=
    COMPREPLY=("${replies[@]#"$prefix"}")
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -F _medaug medaug
"""
_ZSH = """#compdef medaug
_medaug() {
    local -a replies
    replies=("${(@f)$(command medaug completion line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ $replies[1] == :files ]]; then
        compset -P '*='
        _files
    else
        compadd -Q -S '' -- ${(M)replies:#*=}
        compadd -Q -- ${replies:#*=}
    fi
}
compdef _medaug medaug
"""
_FISH = """function __medaug_replies
    set -l word (commandline -ct)
    set -l replies (command medaug completion line (commandline -cp) 2>/dev/null)
    if test "$replies[1]" = :files
        set -l key (string replace -r '=.*' '=' -- $word)
        for file in (__fish_complete_path (string replace -r '^[^=]*=' '' -- $word))
            echo $key$file
        end
    else
        printf '%s\\n' $replies
    end
end
complete -c medaug -f -a '(__medaug_replies)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def answer(words: Sequence[str]) -> str:
    """What `medaug completion WORDS` prints: a shell's script, or the replies to a command line up to the cursor.

    Raises:
        UserError: no such shell.
    """
    if list(words[:1]) == ["line"]:
        return "".join(f"{reply}\n" for reply in replies(" ".join(words[1:])))
    shell = words[0] if words else ""
    if shell not in SCRIPTS:
        raise no_such(f"completion {shell}".strip() + ": no such shell", shell, SCRIPTS, f"(all: {', '.join(SCRIPTS)})")
    return SCRIPTS[shell]


def replies(line: str) -> list[str]:
    """What the last word of a command line may become; `FILES` if it is the path of a file or folder.

    Args:
        line: from the program's name to the cursor.
    """
    words = line.split()[1:]
    current = "" if not words or line[-1:].isspace() else words.pop()
    if not words:
        found = [*STAGES, "completion", "--version", "--help"]
    elif words[0] == "completion":
        found = list(SCRIPTS)
    elif words[0] in STAGES:
        found = _of_stage(STAGES[words[0]], words[1:], current)
    else:
        found = []
    return [reply for reply in found if reply.startswith(current) or reply == FILES]


def _of_stage(stage: Stage, given: Sequence[str], current: str) -> list[str]:
    word, equals, value = current.partition("=")
    if equals:
        return _values(stage, word, value)
    if current.startswith("-"):
        return ["--help", "--cfg", "--version", "-q", "-v", *(["--multirun"] if stage.name == "train" else [])]
    taken = {other.partition("=")[0] for other in given}
    own = {path: path.removeprefix(f"{stage.name}.") for path in keys() if stage.accepts(path)}
    groups = [node for node in stage.reads if node not in own and choices(node)]
    if current.endswith("/") or (stage.positional and current and not any(w.startswith(current) for w in own.values())):
        return [FILES]
    return [f"{word}=" for word in dict.fromkeys([*groups, *own.values()]) if word not in taken]


def _values(stage: Stage, word: str, value: str) -> list[str]:
    """The replies for `word=value`; in a list, the last item is completed."""
    key: Key | None = keys().get(f"{stage.name}.{word}") or keys().get(word)
    if word in stage.reads and (found := choices(word)):
        return [f"{word}={name}" for name in found]
    if key is None:
        return []
    if key.is_path:
        return [FILES]
    before = value[: max(value.rfind("["), value.rfind(",")) + 1]
    listed = ["true", "false"] if key.hint is bool else [str(name) for name in names(key.choices)]
    return [f"{word}={before}{name}" for name in listed]
