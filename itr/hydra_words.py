"""Words of the command line before Hydra reads them: paths and names are taken as they are.

Hydra's grammar refuses letters beyond ASCII and most punctuation, and reads ``out=20261129`` as a
number. In keys that hold a path or a name neither is wanted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from itr.errors import ConfigError

PATHS = frozenset(
    "out checkpoint scores embeddings model.init model.text.name model.text.tokenizer "
    "model.image.name data.root data.images data.cache data.train data.val data.test data.shards "
    "data.second_text data.noise_file tracker.tensorboard.dir".split()
)
NAMES = frozenset(
    "tracker.wandb.project tracker.wandb.entity tracker.wandb.group tracker.wandb.notes "
    "tracker.trackio.project tracker.trackio.group data.name".split()
)
NUMBER = re.compile(r"[+-]?(\d[\d_]*)?\.?[\d_]+(e[+-]?\d+)?|[+-]?(inf|nan)|true|false", re.I)
STARTS = ("'", '"', "[", "{", "$", "choice(", "range(", "glob(", "interval(")  # of Hydra's grammar
PLAIN = re.compile(r"[\w./:+%@?|*-]*", re.ASCII)  # what Hydra reads without quotes
NO_FILE = ("experiment=null", "experiment=")  # the default, which Hydra does not let one repeat
GROUPS = ("model", "data", "loss", "task", "tracker", "optim", "runtime")


def readable(arguments: Sequence[str]) -> list[str]:
    """``arguments`` in a form that Hydra accepts.

    A path or a name is quoted where Hydra would refuse it or take it for a number. Commas stay:
    they separate the values of a multirun. ``tracker=null`` and ``tracker=[]`` become
    ``tracker=none``; null for experiment and recipe means no file; a leading ``~/`` in a path is
    the home directory. Raises ConfigError for a list of options of any group but ``tracker``.
    """
    return [_readable(argument) for argument in arguments if argument not in NO_FILE]


def _readable(argument: str) -> str:
    key, equals, value = argument.partition("=")
    key = key.lstrip("+")
    if not equals:
        return argument
    if argument in ("recipe=null", "recipe="):
        return "~recipe"  # the way to say it to Hydra
    if key == "tracker" and value in ("null", "", "[]"):
        return "tracker=none"
    if key in GROUPS and key != "tracker" and value.startswith("["):
        raise ConfigError(
            f"{argument}: one option is expected, not a list; pass {key}=NAME, or {key}=A,B with "
            "-m for one run each"
        )
    if key not in PATHS and key not in NAMES:
        return argument
    if value in ("", "null") or value.startswith(STARTS):
        return argument
    if key in PATHS and value.startswith("~"):
        value = os.path.expanduser(value)
    if "," in value or (PLAIN.fullmatch(value) and not NUMBER.fullmatch(value)):
        return f"{argument.partition('=')[0]}={value}"
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)  # Hydra: backslashes count only before a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    ending = "\\" * trailing
    return f'{argument.partition("=")[0]}="{escaped}{ending}"'


def expand_paths(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``~`` expanded in every path, also where it was quoted or in a file."""

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                changed[key] = walk(value, f"{name}.")
            elif name in PATHS and isinstance(value, str) and value.startswith("~"):
                changed[key] = os.path.expanduser(value)
            else:
                changed[key] = value
        return changed

    return walk(values, "")
