"""The command ``itr data caption``: writes a synthetic caption of each training image.

The result feeds ``data.second_text=``. ALIP's captions come from OFA-base, fine-tuned on COCO.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch

from itr.command import command
from itr.data.config import DataConfig
from itr.data.images.decode import decode, image_name, read_bytes
from itr.data.layouts.registry import open_split
from itr.data.records import Record, Split
from itr.data.tools.captioner import Captioner, CaptionerOptions
from itr.data.tools.convert import source_config
from itr.errors import ConfigError, DataError, first_of
from itr.files import atomic_write, parse_json
from itr.terminal import PlainConsole, say

REPORT_EVERY = 10.0  # seconds between lines about the progress
DEFAULTS = CaptionerOptions("")
PROCESSES = multiprocessing.get_context("spawn")  # the threads of torch do not survive a fork


class Job(NamedTuple):
    """What one process does: every ``world``-th batch from ``rank`` on of the images left."""

    options: CaptionerOptions
    data: DataConfig
    split: str
    part: Path  # file that the captions are appended to
    left: list[int]  # images
    device: str
    batch_size: int


@command
def main(arguments: Sequence[str]) -> None:
    """Caption a dataset."""
    args = _parser().parse_args(arguments)
    for line in caption(args):
        say(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itr data caption",
        description="Write a synthetic caption of each training image, for data.second_text=OUT. "
        "An interrupted run continues if the same command is given again.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder in any layout, dataset_*.json, table or tars")
    add("--model", required=True, help="captioner: Hugging Face name or directory (BLIP, GIT, ...)")
    add("--out", required=True, help="file to write, e.g. captions.jsonl; must not exist")
    add("--split", default="train", help="split that is captioned (default train)")
    add("--name", help="name of the dataset, if SOURCE holds several")
    add("--images", help="image folder of SOURCE (default: searched beside the annotations)")
    add("--prompt", default="", help="text that the captions continue, or a chat model's question")
    add("--beams", type=int, default=DEFAULTS.beams, help="beam size (default 5)")
    add("--max-tokens", type=int, default=DEFAULTS.max_tokens, help="at most (default 16)")
    add(
        "--no-repeat",
        type=int,
        default=DEFAULTS.no_repeat,
        help="so many tokens in a row occur once in a caption (default 3; 0: no limit)",
    )
    add("--batch-size", type=int, default=32, help="images per forward pass (default 32)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu or cuda (default: cuda if available)")
    add("--devices", type=int, default=1, help="processes, one for each device (default 1)")
    return parser


def caption(args: argparse.Namespace) -> list[str]:
    """Run the command; lines about the result.

    Raises ConfigError or DataError. Captions written so far are kept beside ``--out``.
    """
    out = Path(args.out).expanduser()
    if out.suffix != ".jsonl" or out.exists():
        fault = "already exists" if out.exists() else "is no .jsonl file"
        raise ConfigError(f"--out {out}: {fault}; pass a new file such as captions.jsonl")
    source = argparse.Namespace(**vars(args), layout="auto", second_key="", held_out=0)
    data = source_config(source)
    split = open_split(data, args.split, "pixels")
    names = caption_keys(split)
    options = CaptionerOptions(args.model, args.prompt, args.beams, args.max_tokens, args.no_repeat)
    parts = _part_names(out, options)
    done = _captions_in(parts(None))
    left = [number for number, name in enumerate(names) if name not in done]
    say(f"{split.source}: {len(names)} images, {len(names) - len(left)} have their captions")
    jobs = [
        Job(options, data, args.split, parts(rank), own, device, args.batch_size)
        for rank, device in enumerate(_devices(args.device, args.devices))
        if (own := _share(left, rank, args.devices, args.batch_size))
    ]
    _run(jobs, split, names, len(left))
    done |= _captions_in(parts(None))
    failed = [name for name in names if not done.get(name)]
    if len(failed) == len(names):
        raise DataError(f"{split.source}: no image could be captioned, e.g. {failed[0]}")
    rows = ({"key": name, "caption": done[name]} for name in names if done.get(name))
    with atomic_write(out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    for path in parts(None):
        path.unlink()
    lines = [f"wrote {len(names) - len(failed)} captions to {out}", f"use: data.second_text={out}"]
    if failed:
        lines.append(f"without a caption: {len(failed)} images: {first_of(failed)}")
    return lines


def caption_keys(split: Split) -> list[str]:
    """A name of each image by which ``data.second_text`` finds it: its key, file name or path.

    Raises DataError if two images have the same names.
    """

    def key(record: Record) -> str:
        return str(record.extra.get("key", ""))

    def path(record: Record) -> str:
        return str(record.extra.get("file") or record.image)

    choices: list[Callable[[Record], str]] = [key, lambda r: os.path.basename(path(r)), path]
    names: list[str] = []
    for choice in choices:
        names = [choice(record) for record in split.records]
        if all(names) and len(set(names)) == len(names):
            return names
    doubled = next(name for n, name in enumerate(names) if name in set(names[:n]))
    raise DataError(
        f"{split.source}: several images are called {doubled}, so no file can map them to "
        "captions; itr data convert gives them different names"
    )


def _part_names(out: Path, options: CaptionerOptions) -> Callable[[int | None], Any]:
    """Rank -> the file of its captions; None -> those that exist.

    Raises ConfigError if captions of another model or other options are there.
    """
    digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
    others = [
        p for p in out.parent.glob(f"{out.name}.*.part-*") if f".{digest}.part-" not in p.name
    ]
    if others:
        raise ConfigError(
            f"{min(others)}: captions of another model or other options; give the same options to "
            "continue, remove the file, or pass another --out"
        )

    def parts(rank: int | None) -> Any:
        if rank is None:
            return sorted(out.parent.glob(f"{out.name}.{digest}.part-*"))
        return out.with_name(f"{out.name}.{digest}.part-{rank}")

    return parts


def _captions_in(parts: Sequence[Path]) -> dict[str, str]:
    """Key -> caption of the files of all processes."""
    return {key: text for path in parts for key, text in _read_part(path)}


def _read_part(path: Path) -> list[tuple[str, str]]:
    """(key, caption) of each complete line; a line that a killed run left incomplete is cut off."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    rows = [parse_json(line) for line in content[:end].splitlines()]
    return [(row["key"], row["caption"]) for row in rows]


def _devices(device: str, count: int) -> list[str]:
    if count < 1 or (device == "cuda" and count > torch.cuda.device_count()):
        there = torch.cuda.device_count() if device == "cuda" else os.cpu_count()
        raise ConfigError(f"--devices {count}: expected 1 to {there}")
    return [f"cuda:{rank}" if device == "cuda" else device for rank in range(count)]


def _share(left: list[int], rank: int, world: int, size: int) -> list[int]:
    """Every ``world``-th batch of ``left``, from ``rank`` on."""
    starts = range(rank * size, len(left), world * size)
    return [number for start in starts for number in left[start : start + size]]


def _run(jobs: list[Job], split: Split, names: list[str], total: int) -> None:
    """Run the jobs, in this process if there is one only, and report the progress."""
    report = _Progress(total)
    if len(jobs) == 1:
        for count in _caption(jobs[0], split, names):
            report.add(count)
        return
    queue = PROCESSES.Queue()
    workers = [PROCESSES.Process(target=_work, args=(job, queue), daemon=True) for job in jobs]
    for worker in workers:
        worker.start()
    running = len(workers)
    while running:
        try:
            item = queue.get(timeout=1)
        except Empty:
            if dead := [w.exitcode for w in workers if w.exitcode not in (None, 0)]:
                raise DataError(
                    f"a captioning process ended with exit code {dead[0]}; give the same command "
                    "to continue"
                ) from None
            continue
        if isinstance(item, str):
            raise DataError(item)
        running -= item is None
        report.add(item or 0)
    for worker in workers:
        worker.join()


def _work(job: Job, queue: Any) -> None:
    """The work of a process: counts of captions, then None; the message of an error."""
    try:
        split = open_split(job.data, job.split, "pixels")
        for count in _caption(job, split, caption_keys(split)):
            queue.put(count)
        queue.put(None)
    except (ConfigError, DataError) as error:
        queue.put(str(error))


def _caption(job: Job, split: Split, names: list[str]) -> Iterator[int]:
    """Append the captions of the job's images to its part, and yield the count of each batch."""
    captioner = Captioner(job.options, job.device)
    with job.part.open("ab") as file:
        for start in range(0, len(job.left), job.batch_size):
            batch, images = [], []
            for number in job.left[start : start + job.batch_size]:
                image = split.records[number].image
                try:
                    images.append(decode(read_bytes(image), image_name(image), split.decoder))
                except DataError as error:  # it has no caption in the end, which is reported
                    PlainConsole(stderr=True).print(str(error))
                    continue
                batch.append(names[number])
            texts = captioner(images) if images else []
            rows = ({"key": key, "caption": text} for key, text in zip(batch, texts, strict=True))
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
            yield min(job.batch_size, len(job.left) - start)


class _Progress:
    """Prints how many captions are written, and how long the others take."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.start = self.last = time.monotonic()

    def add(self, count: int) -> None:
        """Count images; print a line now and then, and at the end."""
        self.done += count
        now = time.monotonic()
        if count and (now - self.last >= REPORT_EVERY or self.done == self.total):
            self.last, speed = now, self.done / max(1e-9, now - self.start)
            left = (self.total - self.done) / speed
            say(f"{self.done} of {self.total}, {speed:.1f} a second, about {left:.0f} s left")
