"""Shell completion of ``itr``: eval "$(itr completion bash)" (or zsh; fish: | source).

The shell calls ``itr completion query`` with the line so far in COMP_LINE and COMP_POINT. Groups
and keys of train, eval and sweep come from Hydra; nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

from itr.cli import COMMANDS
from itr.command import command
from itr.data.__main__ import COMMANDS as DATA_COMMANDS
from itr.errors import ConfigError
from itr.results.__main__ import COMMANDS as RESULTS_COMMANDS

SUBCOMMANDS = {  # the sub-commands of a command
    "completion": ("bash", "zsh", "fish"),
    "data": tuple(DATA_COMMANDS),
    "official": ("inspect", "convert", "export"),
    "results": ("table", "compare", *RESULTS_COMMANDS),
}
CONFIGS = {"train": "train", "eval": "eval", "sweep": "train"}  # command -> conf/<name>.yaml
SWEEP_OPTIONS = ("jobs", "retries", "dry", "out", "method", "trials", "pruner")

BASH = r"""_itr_completion() {
    local line="${COMP_LINE:0:$COMP_POINT}" IFS=$'\n'
    local word="${line##* }"
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" \
        "${COMP_WORDS[0]}" completion query 2>/dev/null))
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then  # bash completes what follows it
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o nospace -o default -F _itr_completion itr
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + BASH
FISH = r"""function __itr_completion
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- "$COMP_LINE")
    itr completion query 2>/dev/null
end
complete -c itr -a '(__itr_completion)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


@command
def main(arguments: Sequence[str]) -> None:
    """Print the script of a shell, or answer its query."""
    if list(arguments) == ["query"]:
        line = os.environ.get("COMP_LINE", "")
        print(*candidates(line[: int(os.environ.get("COMP_POINT", len(line)))]), sep="\n")
    elif arguments[:1] in (["--help"], ["-h"]):
        print('usage: eval "$(itr completion bash)"   (zsh: the same; fish: ... fish | source)')
    elif len(arguments) == 1 and arguments[0] in SCRIPTS:
        sys.stdout.write(SCRIPTS[arguments[0]])
    else:
        raise ConfigError(f"'{' '.join(arguments)}': expected one of {', '.join(SCRIPTS)}")


def candidates(line: str) -> list[str]:
    """The words that may complete the last word of ``line``, the command line up to the cursor.

    An empty list makes the shell complete file names.
    """
    words = line.split()
    if not words or line[-1].isspace():
        words.append("")
    _, *before, word = words
    if not before:
        return _starting_with(word, [*COMMANDS, "--help", "--version"])
    name, *arguments = before
    if name in SUBCOMMANDS:
        return [] if arguments else _starting_with(word, [*SUBCOMMANDS[name], "--help"])
    if name not in CONFIGS or (name == "sweep" and not arguments):
        return []
    matches: list[str] = []
    if name == "sweep":
        matches = [f"{option}=" for option in SWEEP_OPTIONS if option.startswith(word)]
        _, *others = arguments  # the file, and what goes to train.py
        arguments = [one for one in others if one.partition("=")[0] not in SWEEP_OPTIONS]
    return [*matches, *hydra_candidates(CONFIGS[name], [*arguments, word])]


def _starting_with(word: str, options: Iterable[str]) -> list[str]:
    return [f"{option} " for option in options if option.startswith(word)]


def hydra_candidates(config_name: str, words: Sequence[str]) -> list[str]:
    """Hydra's completion of the last of ``words``: groups, their options, keys and values."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from itr.compose import CONF

    line = re.sub(r"--config-dir[ =](\S+)(?=\s)", _search_path, " ".join(words))
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        matches = plugin._query(config_name=config_name, line=line)
    return [*matches, *_nested_options(words[-1])]


def _nested_options(word: str) -> list[str]:
    """Options in sub-folders of a group, which Hydra omits: ``experiment=alip_gates/all``."""
    group, equals, _ = word.partition("=")
    if not equals:
        return []
    from itr.override_errors import options

    nested = (f"{group}={option}" for option in options(group) if "/" in option)
    return sorted(option for option in nested if option.startswith(word))


def _search_path(match: re.Match[str]) -> str:
    return f"hydra.searchpath=[file://{os.path.abspath(match.group(1))}]"
