"""The command ``itr data bench``: measures the throughput of data loading.

Measures each stage on one core, then whole batches with more workers: this shows which stage limits
training and how many workers are needed. Rounds of all stages are interleaved and medians reported,
so that other load on the machine affects all stages alike.
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
from rich.progress import track
from rich.table import Table

from itr.command import command
from itr.data.images.decode import decode, image_name, read_bytes
from itr.data.images.pixels import Pixels
from itr.data.images.transforms import Choices, RemainingTransforms, draw_choices, transform
from itr.data.layouts.registry import open_split
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.loading.second_text import open_second_texts
from itr.data.records import Split
from itr.data.text.known_tokenizers import open_tokenizer
from itr.data.text.token_cache import tokenize_cached
from itr.data.tools import arguments as command_line
from itr.errors import ConfigError
from itr.terminal import PlainConsole
from itr.view import View

ROUNDS = 5
POOL = 256  # images that each stage cycles through
USAGE = """\
usage: itr data bench data=NAME data.root=DIR model=NAME [KEY=VALUE ...]

Measure how many samples per second each stage of data loading handles on one core, then how many
whole batches with different numbers of workers: which stage limits training, and how many workers
are needed.

  data=NAME        dataset (f30k, coco, table, scenes, ...)
  data.root=DIR    its folder
  model=NAME       model whose preprocessing and tokenizer are measured
  seconds=0.5      time per stage and round; there are 5 rounds
  workers=0,1,2    numbers of workers to compare
  batch_size=64    samples per batch
  KEY=VALUE        any other option of data or model, as for train.py"""

Stage = Callable[[np.ndarray], Any]  # processes the captions with these indices


@dataclasses.dataclass
class BenchOptions:
    """Options of the command itself; all others are composed as for ``train.py``."""

    seconds: float = 0.5  # per stage and round
    workers: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 64


@command
def main(arguments: Sequence[str]) -> None:
    """Measure and print a table."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    options, rest = _parse_options(arguments)
    values = command_line.compose(rest)
    PlainConsole().print(measure(values, options))


def _parse_options(arguments: Sequence[str]) -> tuple[BenchOptions, list[str]]:
    """The options of the command, and the other arguments."""
    keys = {field.name for field in dataclasses.fields(BenchOptions)}
    values = dict(a.split("=", 1) for a in arguments if a.partition("=")[0] in keys and "=" in a)
    rest = [a for a in arguments if a.partition("=")[0] not in keys]
    try:
        return BenchOptions(
            seconds=float(values.get("seconds", 0.5)),
            workers=tuple(int(n) for n in values.get("workers", "0,1,2").split(",")),
            batch_size=int(values.get("batch_size", 64)),
        ), rest
    except ValueError as error:
        raise ConfigError(
            f"{error}; expected numbers, such as seconds=0.5 workers=0,1,2 batch_size=64"
        ) from error


def measure(values: dict[str, Any], options: BenchOptions) -> Table:
    """Measure the training split of a composed configuration; the table of results."""
    data, view = command_line.data_config(values), command_line.view_of(values)
    split = open_split(data, "train", view.kind, second=view.second_text is not None)
    loader = make_loader(split, view, data.cache, min(options.batch_size, split.n_images))
    torch.set_num_threads(1)
    stages = {**(_pixel_stages(loader) if loader.images.pixels else {}), **_common_stages(loader)}
    table = Table(title=f"{data.name}, {split.layout} layout, for {values['model']['name']}")
    for name in ("stage", "samples/s", "ms/sample"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, rate in rates(stages, loader, options.seconds).items():
        table.add_row(f"{name}, one core", f"{rate:,.0f}", f"{1e3 / rate:.3f}")
    table.add_section()
    for workers, rate in _batch_rates(loader, options).items():
        name = "main process" if workers == 0 else f"{workers} workers"
        table.add_row(
            f"batches of {loader.batch_size}, {name}", f"{rate:,.0f}", f"{1e3 / rate:.3f}"
        )
    return table


def make_loader(
    split: Split, view: View, cache: str, batch_size: int, workers: int = 0
) -> TrainLoader:
    """The loader that training on a CPU would use."""
    tokenizer = open_tokenizer(view, itertools.chain(split.texts, split.second_texts()))
    table = tokenize_cached(tokenizer, split.texts, view.text, cache)
    second = open_second_texts(split, view, tokenizer, cache)
    data = TrainData(split, view, table, tokenizer, second)
    return TrainLoader(data, LoaderOptions(batch_size, num_workers=workers))


def _pixel_stages(loader: TrainLoader) -> dict[str, Stage]:
    """Each stage of image loading, on the precomputed output of the stages before it."""
    split, view = loader.split, loader.view.pixels
    rows = split.text_to_image[loader.plan.order(0)[:POOL]].tolist()
    images = [split.records[row].image for row in rows]
    data = [read_bytes(image) for image in images]
    decoded = [decode(d, image_name(i), split.decoder) for d, i in zip(data, images, strict=True)]
    pixels = Pixels(split, view)
    drawn = pixels.draw_uniforms(0, 0, loader.plan.order(0)[:POOL])
    choices = [
        Choices() if drawn is None else draw_choices(view, drawn[n], *image.shape[-2:])
        for n, image in enumerate(decoded)
    ]
    resized = torch.stack(
        [
            transform(image[:3], view, Choices(box=choice.box), split.decoder)
            for image, choice in zip(decoded, choices, strict=True)
        ]
    )
    count = len(images)

    def resize(n: int) -> Any:
        return transform(decoded[n][:3], view, Choices(box=choices[n].box), split.decoder)

    def augment(captions: np.ndarray) -> Any:  # whole batches, as in training
        rows = [n % count for n in range(len(captions))]
        return RemainingTransforms.of(view, [choices[n] for n in rows])(resized[rows])

    def per_image(work: Callable[[int], Any]) -> Stage:
        return lambda captions: [work(n % count) for n in range(len(captions))]

    return {
        "read": per_image(lambda n: read_bytes(images[n])),
        "decode": per_image(lambda n: decode(data[n], "", split.decoder)),
        "crop and resize": per_image(resize),
        "augment and normalize": augment,
    }


def _common_stages(loader: TrainLoader) -> dict[str, Stage]:
    split, tokenizer = loader.split, loader.tokenizer
    texts = split.captions()[:2000]

    def tokenize(captions: np.ndarray) -> Any:
        return tokenizer.tokenize([texts[n % len(texts)] for n in captions], loader.view.text)

    def cached_ids(captions: np.ndarray) -> Any:
        return loader.captions.fields(0, captions)

    def images(captions: np.ndarray) -> Any:
        return loader.images.fields(0, captions)

    kind = "images" if loader.images.pixels else "regions"
    return {
        f"{kind}, all stages": images,
        "captions, tokenized": tokenize,
        "captions, cached, sampled and padded": cached_ids,
    }


def rates(stages: dict[str, Stage], loader: TrainLoader, seconds: float) -> dict[str, float]:
    """Samples per second of CPU time of each stage: medians over interleaved rounds."""
    order = loader.plan.order(0)
    batches = itertools.cycle(
        [order[n : n + loader.batch_size] for n in range(0, len(order), loader.batch_size)]
    )
    samples: dict[str, list[float]] = {name: [] for name in stages}
    console = PlainConsole(stderr=True)
    for _ in track(range(ROUNDS), "measuring", console=console, transient=True):
        for name, stage in stages.items():
            samples[name].append(_rate(stage, batches, seconds))
    return {name: statistics.median(values) for name, values in samples.items()}


def _rate(stage: Stage, batches: Iterator[np.ndarray], seconds: float) -> float:
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds or not done:
        captions = next(batches)
        stage(captions)
        done += len(captions)
    return done / (time.process_time() - started)


def _batch_rates(loader: TrainLoader, options: BenchOptions) -> dict[int, float]:
    """Samples per second of wall-clock time of whole batches, by number of workers."""
    rates_by_workers = {}
    for workers in options.workers:
        loader.num_workers = workers
        epochs = itertools.chain.from_iterable(loader.epoch(n) for n in itertools.count())
        next(epochs)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < ROUNDS * options.seconds:
            done += len(next(epochs))
        rates_by_workers[workers] = done / (time.perf_counter() - started)
    return rates_by_workers
