"""How fast a data set is read: itr data bench data=coco data.root=DIR model=albef.

Samples a second of each stage on one worker, then of whole batches with more workers: which stage
holds training up, and how many workers it takes. Rounds of all stages are interleaved and medians
taken, so that a busy machine slows them alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from itr.command import command
from itr.data.images.decode import decode, name_of, read_bytes
from itr.data.images.pixels import Pixels
from itr.data.images.transforms import Choices, Rest, draw, transform
from itr.data.layouts.registry import open_split
from itr.data.loading.loader import TrainLoader
from itr.data.loading.second_text import open_second
from itr.data.records import Split
from itr.data.text.open import build_table, open_tokenizer
from itr.data.tools import compose
from itr.errors import ConfigError
from itr.view import View

ROUNDS = 5
POOL = 256  # pictures that the stages of one round go through
USAGE = "expected data=NAME data.root=DIR model=NAME [seconds=0.5] [workers=0,1,2] [batch_size=64]"

Stage = Callable[[np.ndarray], Any]  # does its work for the captions it is given


@dataclasses.dataclass
class Options:
    """What the command line asks for; the rest composes as for `train.py`."""

    seconds: float = 0.5  # a stage and round
    workers: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 64


@command
def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{USAGE}")
        return
    options, rest = _options(arguments)
    values = compose.compose(rest)
    Console().print(measure(values, options))


def _options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    own = {field.name for field in dataclasses.fields(Options)}
    given = dict(a.split("=", 1) for a in arguments if a.partition("=")[0] in own and "=" in a)
    rest = [a for a in arguments if a.partition("=")[0] not in own]
    try:
        return Options(
            seconds=float(given.get("seconds", 0.5)),
            workers=tuple(int(n) for n in given.get("workers", "0,1,2").split(",")),
            batch_size=int(given.get("batch_size", 64)),
        ), rest
    except ValueError as error:
        raise ConfigError(f"{error}; {USAGE}") from error


def measure(values: dict[str, Any], options: Options) -> Table:
    """The table of stages for the training split of a composed configuration."""
    data, view = compose.data_config(values), compose.view_of(values)
    wants_second = view.second_text is not None
    split = open_split(data, "train", view.kind, second=wants_second)
    loader = make_loader(split, view, data.cache, min(options.batch_size, split.n_images))
    torch.set_num_threads(1)
    stages = {**(_pixel_stages(loader) if loader.pixels else {}), **_common_stages(loader)}
    table = Table(
        title=f"{data.name}, {split.layout} layout, as {values['model']['name']} wants it"
    )
    for name in ("stage", "samples/s", "ms a sample"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, rate in rates(stages, loader, options.seconds).items():
        table.add_row(f"{name}, one worker", f"{rate:,.0f}", f"{1e3 / rate:.3f}")
    table.add_section()
    for workers, rate in _whole(split, loader, options).items():
        name = "in the main thread" if workers == 0 else f"{workers} workers"
        table.add_row(
            f"whole batches of {loader.batch_size}, {name}", f"{rate:,.0f}", f"{1e3 / rate:.3f}"
        )
    return table


def make_loader(
    split: Split, view: View, cache: str, batch_size: int, workers: int = 0
) -> TrainLoader:
    """The loader that training would have, on a CPU."""
    tokenizer = open_tokenizer(view, itertools.chain(split.texts, split.second_texts()))
    table = build_table(tokenizer, split.texts, view.text, cache)
    second = open_second(split, view, tokenizer, cache)
    return TrainLoader(split, view, table, tokenizer, batch_size, 0, workers=workers, second=second)


def _pixel_stages(loader: TrainLoader) -> dict[str, Stage]:
    """Each stage of a picture by itself, on what the stages before made of it."""
    split, view = loader.split, loader.view.pixels
    images = split.text_to_image[loader.order(0)[:POOL]].tolist()
    places = [split.records[number].image for number in images]
    data = [read_bytes(place) for place in places]
    decoded = [decode(d, name_of(p), split.decoder) for d, p in zip(data, places, strict=True)]
    pixels = Pixels(split, view)
    drawn = pixels.drawn(0, 0, loader.order(0)[:POOL])
    choices = [
        Choices() if drawn is None else draw(view, drawn[n], *image.shape[-2:])
        for n, image in enumerate(decoded)
    ]
    resized = torch.stack(
        [
            transform(image[:3], view, Choices(box=choice.box), split.decoder)
            for image, choice in zip(decoded, choices, strict=True)
        ]
    )
    rests = [Rest.of(view, [choice]) for choice in choices]
    count = len(images)

    def resize(n: int) -> Any:
        return transform(decoded[n][:3], view, Choices(box=choices[n].box), split.decoder)

    def each(work: Callable[[int], Any]) -> Stage:
        return lambda captions: [work(n % count) for n in range(len(captions))]

    return {
        "read": each(lambda n: read_bytes(places[n])),
        "decode": each(lambda n: decode(data[n], "", split.decoder)),
        "crop and resize": each(resize),
        "augment and normalise": each(lambda n: rests[n](resized[n : n + 1])),
    }


def _common_stages(loader: TrainLoader) -> dict[str, Stage]:
    split, tokenizer = loader.split, loader.tokenizer
    texts = split.captions()[:2000]

    def tokenise(captions: np.ndarray) -> Any:
        return tokenizer.tokenize([texts[n % len(texts)] for n in captions], loader.view.text)

    def ids(captions: np.ndarray) -> Any:
        return loader.texts.pad(*loader.drawn_texts(0, captions))

    def images(captions: np.ndarray) -> Any:
        return loader.image_fields(0, captions, split.text_to_image[captions])

    kind = "pictures" if loader.pixels else "regions"
    return {
        f"{kind}, all of it": images,
        "captions, tokenised": tokenise,
        "captions, from the cache, drawn and padded": ids,
    }


def rates(stages: dict[str, Stage], loader: TrainLoader, seconds: float) -> dict[str, float]:
    """Samples a second of CPU time of each stage: medians of interleaved rounds."""
    order = loader.order(0)
    batches = itertools.cycle(
        [order[n : n + loader.batch_size] for n in range(0, len(order), loader.batch_size)]
    )
    found: dict[str, list[float]] = {name: [] for name in stages}
    console = Console(stderr=True)
    for _ in track(range(ROUNDS), "measuring", console=console, transient=True):
        for name, stage in stages.items():
            found[name].append(_rate(stage, batches, seconds))
    return {name: statistics.median(values) for name, values in found.items()}


def _rate(stage: Stage, batches: Iterator[np.ndarray], seconds: float) -> float:
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds or not done:
        captions = next(batches)
        stage(captions)
        done += len(captions)
    return done / (time.process_time() - started)


def _whole(split: Split, loader: TrainLoader, options: Options) -> dict[int, float]:
    """Samples a second of wall-clock time of whole batches, by number of workers."""
    found = {}
    for workers in options.workers:
        loader.workers = workers
        epochs = itertools.chain.from_iterable(loader.epoch(n) for n in itertools.count())
        next(epochs)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < ROUNDS * options.seconds:
            done += len(next(epochs))
        found[workers] = done / (time.perf_counter() - started)
    return found
