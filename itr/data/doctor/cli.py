"""The doctor: itr data check data.root=DIR [data=coco] [model=albef] [--json].

Every layout found in the folder is opened as training opens it and then looked at in full: counts,
content hashes, every picture decoded, every region read, repeats and leaks between splits. Exit
code: 0 clean (notes do not count), 1 faults that training skips, converts or warns about, 2
training would refuse, 3 the doctor itself failed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from itr.command import command
from itr.data.checks import fingerprint
from itr.data.checks.leaks import check_leaks
from itr.data.doctor.inspect import (
    caption_statistics,
    check_captions,
    check_pictures,
    check_regions,
    check_repeats,
    listed,
)
from itr.data.doctor.report import FAILED, NOTE, REFUSED, WARNING, Report, SplitReport
from itr.data.layout import listing
from itr.data.layouts.precomp import check_same_width
from itr.data.layouts.registry import FINDERS, KINDS, ORDER, DataConfig, open_split
from itr.data.records import Split
from itr.data.text.open import open_tokenizer
from itr.data.tools import compose
from itr.errors import ConfigError, DataError, UserError
from itr.view import View

# Images of train, val and test in Karpathy's splits.
KNOWN = {"f30k": (29_000, 1_014, 1_000), "coco": (113_287, 5_000, 5_000)}
SCAN_TEST = 1_000  # images of its test; COCO's 5,000 are testall
UNNAMED = ("no file is named", "no folder is named")  # notes that need a named data set
LEFT_OUT = (
    "left out",
    "not read",
    "also has splits",
    "one value only",
)  # notes that say what training skips
DIGITS = "0123456789"  # COCO's own splits end in a year
PARTS = {"train": 0, "val": 1, "dev": 1, "test": 2, "testall": 2}


@dataclasses.dataclass
class Options:
    """What the command line asks for."""

    data: DataConfig
    name: str | None  # of the data set; None: not named, so no counts are known
    view: View | None  # of a model; None: no model is named
    as_json: bool


@command
def main(arguments: Sequence[str]) -> int:
    """Check one folder, print what was found, and return the exit code."""
    console = Console()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return NOTE
    try:
        options = read_options(arguments)
        report = examine(options, Console(stderr=True))
    except (UserError, BrokenPipeError):
        raise
    except Exception:
        traceback.print_exc()  # Python's own exit code for it is 1, which here says something else
        return FAILED
    if options.as_json:
        print(json.dumps(report.to_dict(), indent=2, allow_nan=False, default=float))
    else:
        report.show(console)
    return report.exit_code


def read_options(arguments: Sequence[str]) -> Options:
    """The command line, checked. Raises ConfigError for what cannot be used."""
    keys = [argument for argument in arguments if argument != "--json"]
    groups = {key.partition("=")[0] for key in keys}
    if "data" in groups or "model" in groups:
        values = compose.compose(keys)
        data = compose.data_config(values)
    else:
        values = {}
        dotted = dict(key.split("=", 1) for key in keys if key.startswith("data.") and "=" in key)
        if len(dotted) != len(keys):
            odd = next(key for key in keys if not key.startswith("data.") or "=" not in key)
            raise ConfigError(f"'{odd}': expected data.root=DIR, data=NAME, model=NAME or --json")
        data = compose.plain_data(dotted)
    elsewhere = data.shards is not None or data.train is not None
    if not elsewhere and not (data.root and Path(data.root).expanduser().is_dir()):
        raise ConfigError(f"data.root={data.root}: no such folder; type data.root=DIR")
    return Options(
        data,
        name=data.name if "data" in groups else None,
        view=compose.view_of(values) if "model" in groups else None,
        as_json="--json" in arguments,
    )


def examine(options: Options, console: Console) -> Report:
    """Look at everything in the folder; the progress goes to ``console``."""
    data = options.data
    report = Report(str(data.train or data.shards or data.root))
    layouts = ("table",) if data.train else ("shards",) if data.shards else ORDER
    if data.layout != "auto":
        layouts = (data.layout,)
    with _progress(console) as progress:
        for layout in layouts:
            splits = _splits_of(layout, options.data, report)
            _examine_layout(layout, splits, options, report, progress)
    if not report.splits and not report.findings:
        message = (
            "no layout is recognised; expected <split>_ims.npy and <split>_caps.txt, "
            "dataset_*.json, *_train.json, captions_train.json, *.arrow, a table of pairs or "
            f"*.tar; found {listing(Path(data.root).expanduser())}. Type data.root=DIR, "
            "data.name=NAME or data.train=FILE"
        )
        report.say(REFUSED, "", "", message)
    return report


def _splits_of(layout: str, data: DataConfig, report: Report) -> list[str]:
    """The splits of ``layout``, as its files call them; none where it does not lie there."""
    try:
        place = FINDERS[layout](data)
        found = [] if place is None else place.splits()
    except (DataError, ConfigError) as error:
        report.say(REFUSED, layout, "", str(error))
        return []
    return sorted(found, key=lambda name: (PARTS.get(name.rstrip(DIGITS), len(PARTS)), name))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _examine_layout(
    layout: str, names: Sequence[str], options: Options, report: Report, progress: Progress
) -> None:
    splits: dict[str, Split] = {}
    digests: dict[str, np.ndarray] = {}
    for name in names:
        split = _open(layout, name, options, report)
        if split is None:
            continue
        splits[name] = split
        _examine_split(split, options, report)
        digests[name] = _examine_images(split, report, progress)
    check_repeats(layout, splits, digests, report)
    _compare_widths(layout, splits, report)
    _require_apart(layout, splits, report)


def _open(layout: str, name: str, options: Options, report: Report) -> Split | None:
    """The split as training opens it; None, and a finding, where it would refuse."""
    role = "train" if name.startswith("train") else name  # train2014: trained on, too
    data = dataclasses.replace(options.data, layout=layout, splits={role: name}, noise=0.0)
    try:
        second = role == "train" and data.second_text is not None and KINDS[layout] == "pixels"
        split = open_split(data, role, KINDS[layout], second)
    except (DataError, ConfigError) as error:
        report.say(REFUSED, layout, name, str(error))
        return None
    for note in split.notes:
        if options.name is None and note.startswith(UNNAMED):
            continue
        faulty = any(mark in note for mark in LEFT_OUT)
        report.say(WARNING if faulty else NOTE, layout, name, note)
    return dataclasses.replace(split, name=name)


def _examine_split(split: Split, options: Options, report: Report) -> None:
    entry = SplitReport(
        split.layout,
        split.name,
        split.source,
        split.n_images,
        split.n_captions,
        fingerprint.content_hash(split),
        caption_statistics(split),
    )
    report.splits.append(entry)
    check_captions(split, report)
    if options.view is not None:
        entry.statistics["ids_longest"] = _check_lengths(split, options.view, report)
    cut = split.name == "dev" and options.data.max_dev_captions is not None  # on purpose
    if options.name in KNOWN and split.name in PARTS and not cut:
        expected = KNOWN[options.name][PARTS[split.name]]
        if split.layout == "precomp" and split.name == "test":
            expected = SCAN_TEST
        if split.n_images != expected:
            message = f"{split.n_images:,} images; {options.name} is known to have {expected:,}"
            report.say(NOTE, split.layout, split.name, message)


def _examine_images(split: Split, report: Report, progress: Progress) -> np.ndarray:
    rows = split.n_images if split.regions is None else len(split.regions)
    task = progress.add_task(f"{split.layout} {split.name}", total=rows)

    def advance(count: int) -> None:
        progress.advance(task, count)

    try:
        if split.regions is not None:
            return check_regions(split, report, advance)
        return check_pictures(split, report, len(os.sched_getaffinity(0)), advance)
    finally:
        progress.remove_task(task)


def _check_lengths(split: Split, view: View, report: Report) -> int | None:
    """Note the captions that the model's view cuts; the longest in ids (None: no tokenizer)."""
    captions = split.captions()
    limit = view.text_eval.max_length or view.text_eval.pad_to
    try:
        tokenizer = open_tokenizer(view, captions)
    except ConfigError as error:
        message = f"caption lengths in ids are not known: {error}"
        report.say(NOTE, split.layout, split.name, message)
        return None
    uncut = dataclasses.replace(view.text_eval, max_length=None, pad_to=None)
    lengths = tokenizer.tokenize(captions, uncut).lengths
    over = np.flatnonzero(lengths > limit) if limit else np.zeros(0, np.int64)
    if len(over):
        message = (
            f"{len(over)} of {len(captions)} captions have more than the model's {limit} ids and "
            f"are cut, such as {listed([repr(captions[n][:40]) for n in over[:1].tolist()])}..."
        )
        report.say(NOTE, split.layout, split.name, message)
    return int(lengths.max())


def _require_apart(layout: str, splits: dict[str, Split], report: Report) -> None:
    trained = [name for name in splits if name.startswith("train")]
    if not trained:
        return
    try:
        check_leaks({"train": splits.pop(trained[0]), **splits})
    except DataError as error:
        report.say(REFUSED, layout, "", str(error))


def _compare_widths(layout: str, splits: dict[str, Split], report: Report) -> None:
    try:
        check_same_width(splits.values())
    except DataError as error:
        report.say(REFUSED, layout, "", str(error))
