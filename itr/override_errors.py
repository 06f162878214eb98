"""Explains errors in the arguments of train.py and eval.py: which one is wrong, what to pass."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from itr.errors import ConfigError, first_of, nearest
from itr.options import CONF, options_of, read
from itr.plugins import conf_folders

# Options that only eval.py accepts.
EVAL_ONLY = {"data": ("imagefolder", "labeled_shards", "torchvision"), "task": ("zeroshot",)}
TRAIN_ONLY = {"task": ("pretrain",)}
INCLUDED = ("text/", "adapters/", "reading/")  # files that other files include
EVAL_ARGUMENTS = "eval.py checkpoint=RUN_DIR task=zeroshot data=imagefolder data.root=DIR"
REQUIRED = ("model", "data", "task", "loss", "optim", "runtime", "tracker")  # groups of train.py


def options(group: str, name: str = "train") -> list[str]:
    """The options of ``group`` that the command ``name`` accepts."""
    known = options_of(group, (CONF, *conf_folders().values()))
    refused = (EVAL_ONLY if name == "train" else TRAIN_ONLY).get(group, ())
    return [o for o in known if o not in refused and not o.startswith(INCLUDED)]


def check_groups(name: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError for a choice of a group that the command ``name`` cannot work with."""
    for argument in arguments if name == "train" else ():
        group, _, option = argument.partition("=")
        if option in EVAL_ONLY.get(group, ()):
            raise ConfigError(
                f"{argument}: only for zero-shot classification of a checkpoint, as in "
                f"'python {EVAL_ARGUMENTS}'; train.py takes {group}="
                f"{'|'.join(options(group))}"
            )
        if group in REQUIRED and option in ("null", ""):
            raise ConfigError(
                f"{argument}: train.py needs one; pass {group}={'|'.join(options(group))}"
            )


def explain(error: Exception, name: str, arguments: Sequence[str]) -> str:
    """Hydra's ``error`` about ``arguments`` of ``name`` (train or eval) as a sentence."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match.group(1), name, arguments)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match.group(1).rpartition("/")
        group = next((a.partition("=")[0] for a in arguments if a.endswith(match[1])), group)
        found = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", text)
        return _unknown_option(group, option, name, found[1].split() if found else [])
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return (
            f"{match.group(1)}: a comma separates several values. For one value that contains a "
            f"comma pass {_quoted(match.group(1))}, for several runs add -m, for a list pass "
            "key=[a,b]"
        )
    if type(error).__name__ == "OverrideParseException":
        return _unreadable(name, arguments)
    return text


def explain_value(error: Exception) -> str:
    """An OmegaConf error with the key it is about."""
    key = getattr(error, "full_key", None) or "configuration"
    text = str(error).splitlines()[0]
    if text.startswith("Missing mandatory value"):
        return f"{key}: has no value; pass {key}=..."
    return f"{key}: {text}"


def _unknown_key(key: str, name: str, arguments: Sequence[str]) -> str:
    known = list(known_keys(name, arguments))
    group = key.partition(".")[0]
    if name == "eval" and group in ("model", "task") and group not in _chosen(arguments):
        choices = "|".join(options(group, name))
        return f"{key}: an option of a {group}; also pass {group}=NAME ({choices})"
    topic = f" {group}" if f"{group}." in key else ""
    return f"'{key}': unknown key{nearest(key, known)}; all keys: python {name}.py --help{topic}"


def _unknown_option(group: str, option: str, name: str, found: Sequence[str]) -> str:
    """``found``: options that Hydra knows, those of ``--config-dir`` included."""
    known = list(dict.fromkeys([*found, *options(group, name)]))
    listed = first_of(known, 15) if known else "none"
    return f"{group}={option}: unknown option{nearest(option, known)} (options: {listed})"


def _unreadable(name: str, arguments: Sequence[str]) -> str:
    """The first argument that Hydra's grammar does not accept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for argument in (a for a in arguments if not a.startswith("-")):
        try:
            parser.parse_overrides([argument])
        except HydraException:
            if "=" not in argument and not argument.startswith("~"):
                return f"'{argument}': expected KEY=VALUE, as in python {name}.py seed=1"
            return f"{argument}: a value with special characters needs quotes: {_quoted(argument)}"
    return f"'{' '.join(arguments)}': expected KEY=VALUE, as in python {name}.py seed=1"


def _quoted(argument: str) -> str:
    """``argument`` with its value in quotes, for Hydra and for the shell."""
    key, _, value = argument.partition("=")
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{value}"')


def _chosen(arguments: Sequence[str]) -> dict[str, str]:
    pairs = (a.partition("=") for a in arguments)
    return {group.lstrip("+"): option for group, _, option in pairs if "." not in group}


def known_keys(name: str, arguments: Sequence[str]) -> Iterator[str]:
    """Every key of ``name`` with the groups that ``arguments`` choose, as far as files say it."""
    main = read(f"{name}.yaml")
    yield from main.keys
    choices = {group: str(option) for group, option in main.choices.items()} | _chosen(arguments)
    if choices.get("loss") == "${model}":
        choices["loss"] = choices["model"]
    for group in REQUIRED:
        for option in str(choices.get(group)).strip("[]").split(","):  # a list of trackers
            for folder in (CONF, *conf_folders().values()):
                if (folder / group / f"{option.strip()}.yaml").is_file():
                    yield from read(f"{group}/{option.strip()}.yaml", folder).keys
    if name == "eval":
        yield from read("data/table.yaml").keys  # every dataset has its keys
