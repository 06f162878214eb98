"""The help of train.py and eval.py, and docs/configuration.md: both from the files in ``conf/``."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from itr.command import command
from itr.errors import ConfigError, nearest
from itr.options import CONF, File, Key, options_of, read
from itr.override_errors import INCLUDED, options
from itr.plugins import conf_folders

GROUPS = {  # groups that a user chooses from, and what for; in the order of the help
    "model": "the method",
    "data": "the dataset",
    "loss": "the loss in the model's slots; default: the method's own",
    "task": "what is trained or evaluated",
    "optim": "optimizer and learning rate schedule",
    "runtime": "what depends on the machine",
    "tracker": "where metrics are logged beside the run directory",
    "experiment": "a row of a published ablation, set together with its model",
    "hydra/launcher": "where the jobs of a multirun (-m) run",
}
OF_COMMAND = {
    "train": tuple(GROUPS),
    "eval": ("model", "data", "task", "runtime", "tracker", "hydra/launcher"),
}
HIDDEN = ("recipe.", "loss")  # recipes set the first; an evaluation uses no loss
COMMANDS = {
    "train": """\
Train an image-text retrieval model.

  python train.py                                     # hrem on the synthetic dataset
  python train.py model=hrem data=f30k data.root=DIR  # with the paper's recipe
  python train.py loss=infonce trainer.epochs=2       # change one thing
  python train.py -m loss=hrem,triplet,infonce        # three runs
  python train.py --cfg job                           # print the whole configuration
  python eval.py checkpoint=RUN_DIR split=test        # evaluate a run""",
    "eval": """\
Evaluate a run, a checkpoint, an authors' file or score matrices.

  python eval.py checkpoint=RUN_DIR split=test
  python eval.py 'checkpoint=[RUN_A,RUN_B]' ensemble=true
  python eval.py checkpoint=AUTHORS_FILE model=NAME data=NAME data.root=DIR
  python eval.py scores=sims.npz out=DIR
  python eval.py checkpoint=RUN_DIR task=zeroshot data=imagefolder data.root=DIR
  python eval.py checkpoint=RUN_DIR tracker=wandb""",
}


def wanted(arguments: Sequence[str]) -> bool:
    """Whether ``arguments`` ask for help."""
    return any(argument in ("--help", "-h") for argument in arguments)


def help_text(name: str, arguments: Sequence[str], width: int | None = None) -> str:
    """What ``python <name>.py --help`` prints, or ``--help TOPIC``: a group (``model``), an option
    of it (``loss=triplet``) or a node (``trainer``). Raises ConfigError for an unknown topic."""
    width = min(width or shutil.get_terminal_size((80, 24)).columns, 120)
    topics = [argument for argument in arguments if not argument.startswith("-")]
    if not topics:
        return "\n".join(_overview(name, width))
    return "\n\n".join("\n".join(_topic(name, topic, width)) for topic in topics)


def _overview(name: str, width: int) -> Iterator[str]:
    yield COMMANDS[name]
    yield ""
    yield "Groups: choose with GROUP=OPTION; --help GROUP (or GROUP=OPTION) lists its keys"
    choices = read(f"{name}.yaml").choices
    for group in OF_COMMAND[name]:
        known = options(group, name)
        if group == "experiment":
            known = [f"{folder}/..." for folder in dict.fromkeys(k.split("/")[0] for k in known)]
        marked = [f"{k} (default)" if k == choices.get(group) else k for k in known]
        yield from _wrap(f"  {group:15s}", f"{GROUPS[group]}: {', '.join(marked)}", width)
    yield ""
    yield "Keys: set with KEY=VALUE"
    yield from _table(_own_keys(name), width)


def _own_keys(name: str) -> list[Key]:
    keys = read(f"{name}.yaml").keys.values()
    return [key for key in keys if not key.name.startswith(HIDDEN)]


def _topic(name: str, topic: str, width: int) -> Iterator[str]:
    group, _, option = topic.partition("=")
    if group in OF_COMMAND[name]:
        known = options(group, name)
        if option and option not in known:
            raise ConfigError(
                f"--help {topic}: unknown option{nearest(option, known)} (options: "
                f"{', '.join(known)})"
            )
        yield from _group(name, group, [option] if option else known, width)
        return
    keys = [key for key in _own_keys(name) if key.name.startswith(f"{topic}.") or key.name == topic]
    if not keys:
        nodes = {key.name.split(".")[0] for key in _own_keys(name)}
        raise ConfigError(
            f"--help {topic}: unknown topic{nearest(topic, [*OF_COMMAND[name], *nodes])} (topics: "
            f"{', '.join([*OF_COMMAND[name], *sorted(nodes)])})"
        )
    yield from _table(keys, width)


def _group(name: str, group: str, chosen: Sequence[str], width: int) -> Iterator[str]:
    """Each option of ``group`` with what it is. The keys follow where there is one option, or where
    options share all keys."""
    files = {option: option_file(group, option) for option in chosen}
    shared = _shared(group, list(files.values()))
    if len(files) > 1 or group == "experiment":
        yield f"{group}: {GROUPS[group]}. Choose with {group}=OPTION"
    name_width = max(16, *(len(option) + 1 for option in files))
    for option, file in files.items():
        yield from _wrap(f"  {option:{name_width}s}", " ".join(file.about), width)
    if shared:
        yield ""
        title = "Keys of every option" if len(files) > 1 else "Keys"
        yield f"{title}: set with KEY=VALUE"
        yield from _table(shared, width)
    if len(files) > 1:
        yield ""
        yield f"The keys of one option: python {name}.py --help {group}=OPTION"


def option_file(group: str, option: str) -> File:
    """The file of ``group=option``. Keys of the reading of data are those of the dataset."""
    for folder in (CONF, *conf_folders().values()):
        if (folder / group / f"{option}.yaml").is_file():
            return read(f"{group}/{option}.yaml", folder)
    raise ConfigError(f"{group}={option}: unknown option")


def _shared(group: str, files: Sequence[File]) -> list[Key]:
    """The keys that all of ``files`` have; of several files without what they set differently."""
    first = files[0].keys
    if len(files) == 1:
        return [key for key in first.values() if not key.name.endswith("_target_")]
    if group == "data":
        return list(read("data/reading/default.yaml", CONF, "data").keys.values())
    return []


def _table(keys: Sequence[Key], width: int) -> Iterator[str]:
    """Key, default and help; a long help continues on lines of its own."""
    name_width = min(max((len(key.name) for key in keys), default=0), 30)
    value_width = min(max((len(key.source) for key in keys), default=0), 14)
    for key in keys:
        source = key.source if len(key.source) <= 2 * value_width else "..."
        if key.value == "???":
            source = "(required)"
        head = f"  {key.name:{name_width}s}  {source:{value_width}s}"
        indent = 2 + name_width + 2 + value_width + 2
        if len(head) > indent - 2 or width - indent < 30:
            yield head.rstrip()
            margin = " " * 6
            yield from textwrap.wrap(
                key.help, width, initial_indent=margin, subsequent_indent=margin
            )
        else:
            yield from _wrap(f"{head}  ", key.help, width)


def _wrap(head: str, text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, max(30, width - len(head))) or [""]
    return [f"{head}{lines[0]}".rstrip(), *(f"{' ' * len(head)}{line}" for line in lines[1:])]


# docs/configuration.md

INTRODUCTION = """\
# Configuration

Generated by `itr options --markdown` from the files in `conf/`, which hold each default and its
explanation. A test compares this page with its output.

Choose an option of a group with `GROUP=OPTION`, set a key with `KEY=VALUE`:

    python train.py model=hrem data=f30k data.root=DIR trainer.epochs=10
    python train.py --help                 # groups and keys
    python train.py --help loss=triplet    # keys of one option
    python train.py --cfg job              # the whole configuration, as composed

A value with special characters needs quotes, for Hydra inside those for the shell:
`'data.root="/data/a,b"'`. A mapping is passed as `'data.columns={image: photo, caption: words}'`.

`--config-dir DIR` adds a folder with options of your own, such as `DIR/model/mymodel.yaml`.
`conf/local/default.yaml`, which is not under version control, is read into every training run:
the place for `data.root` and other paths of one machine (begin it with `# @package _global_`).

Training reads a recipe `conf/recipe/MODEL_DATA_TASK.yaml` where there is one. It sets the published
numbers of that combination; arguments override it.
"""


def markdown() -> str:
    """The page ``docs/configuration.md``."""
    lines = [INTRODUCTION]
    for name in ("train", "eval"):
        lines += [f"## {name}.py", "", *_markdown_table(list(read(f"{name}.yaml").keys.values()))]
    for group, purpose in GROUPS.items():
        lines += [f"## {group}", "", f"{purpose[0].upper()}{purpose[1:]}.", ""]
        for option in options_of(group):
            if option.startswith(INCLUDED):
                continue
            file = option_file(group, option)
            about = " ".join(file.about)
            if group == "experiment":
                lines += [f"* `{option}`: {about}"]
                continue
            lines += [f"### {group}={option}", "", about, ""]
            lines += _markdown_table(_unshared(group, file))
        if group == "experiment":
            lines.append("")
        if group == "data":
            lines += ["### Keys of every dataset of images with captions", ""]
            shared = read("data/reading/default.yaml", CONF, "data").keys.values()
            lines += _markdown_table(list(shared))
    return "\n".join(lines).rstrip() + "\n"


def _unshared(group: str, file: File) -> list[Key]:
    if group != "data":
        return list(file.keys.values())
    shared = read("data/reading/default.yaml", CONF, "data").keys
    return [key for name, key in file.keys.items() if shared.get(name) != key]


def _markdown_table(keys: Sequence[Key]) -> list[str]:
    rows = [
        f"| `{key.name}` | `{_cell(key.source) or ' '}` | {_cell(key.help)} |"
        for key in keys
        if not key.name.endswith("_target_")
    ]
    return ["| key | default | |", "|---|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@command
def main(arguments: Sequence[str]) -> None:
    """``itr options``: the help of train.py and eval.py; ``--markdown``: docs/configuration.md."""
    if unknown := [a for a in arguments if a not in ("--markdown", "--help", "-h")]:
        raise ConfigError(f"itr options {unknown[0]}: unknown argument; expected --markdown")
    if "--markdown" in arguments:
        print(markdown(), end="")
        return
    print("usage: itr options [--markdown]\n")
    print(help_text("train", ()), help_text("eval", ()), sep="\n\n")
