"""The commands ``itr embed`` and ``itr search``, for a user's own images and texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from itr import checkpoint
from itr.command import command
from itr.errors import DataError, first_of
from itr.jobs.retriever import Retriever, find_images, load
from itr.terminal import PlainConsole
from itr.training.console import ProgressDisplay, close_log, open_log

KIND = "embedded files"  # meta["kind"] of the file that `embed` writes
IMAGES_HELP = "folder of images (a model of region features: of .npy arrays)"


@command
def embed(arguments: Sequence[str]) -> None:
    """Write embeddings of a folder of images and a file of texts to a safetensors file."""
    parser = _parser("embed", "Write embeddings of images and texts to a safetensors file.")
    parser.add_argument("--images", type=Path, help=IMAGES_HELP)
    parser.add_argument("--texts", type=Path, help="file with one text per line")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    _run(_embed, parser.parse_args(arguments))


@command
def search(arguments: Sequence[str]) -> None:
    """Print the images that match each text best."""
    parser = _parser("search", "Print the images that match each text best.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--images", type=Path, help=IMAGES_HELP)
    parser.add_argument(
        "--embeddings", type=Path, help="file that itr embed wrote, instead of --images"
    )
    parser.add_argument(
        "--top", type=int, default=10, help="number of images per text (default: 10)"
    )
    _run(_search, parser.parse_args(arguments))


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"itr {name}", description=description)
    parser.add_argument("checkpoint", help="run directory, checkpoint, or an authors' file")
    parser.add_argument("--model", help="method of an authors' file, if it is not recognized")
    parser.add_argument("--tokenizer", help="tokenizer of an authors' file: BERT name or folder")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", help="fp32, bf16 or fp16 (default: that of the checkpoint)")
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def _run(function: Callable[[argparse.Namespace, PlainConsole], None], options: Any) -> None:
    console = PlainConsole()
    open_log(None, console)
    try:
        function(options, console)
    finally:
        close_log()


def _load(options: argparse.Namespace) -> Retriever:
    return load(
        options.checkpoint,
        options.device,
        options.precision,
        options.model,
        options.tokenizer,
        options.batch_size,
    )


def _embed(options: argparse.Namespace, console: PlainConsole) -> None:
    if options.images is None and options.texts is None:
        raise DataError("nothing to embed; pass --images DIR, --texts FILE or both")
    retriever, tensors = _load(options), dict[str, Tensor]()
    meta: dict[str, Any] = {
        "kind": KIND,
        "precision": retriever.precision,
        **{key: retriever.origin.get(key) for key in ("checkpoint", "checkpoint_sha256", "model")},
    }
    if options.images is not None:
        tensors["images"], meta["images"], meta["skipped"] = _encode_folder(
            retriever, options.images, console
        )
    if options.texts is not None:
        meta["texts"], blank = read_texts(options.texts)
        if blank:
            message = (
                f"{options.texts}: {len(blank)} blank lines are skipped (first: line {blank[0]}): "
                "row n is not line n"
            )
            console.print(message, soft_wrap=True)
        with ProgressDisplay(console, 0, training=False) as display:
            tensors["texts"] = retriever.encode_texts(meta["texts"], display.evaluation)
    checkpoint.write(options.out, tensors, meta)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
    console.print(f"{options.out}: {shapes}", soft_wrap=True)


def _search(options: argparse.Namespace, console: PlainConsole) -> None:
    if (options.images is None) == (options.embeddings is None):
        raise DataError("expected exactly one of --images DIR and --embeddings FILE")
    if options.top < 1:
        raise DataError(f"--top {options.top}: expected at least 1")
    retriever = _load(options)
    if options.images is not None:
        images, names, _ = _encode_folder(retriever, options.images, console)
    else:
        images, names = read_embedded(options.embeddings, retriever)
    finite = images.isfinite().all(dim=1)
    if not finite.all():
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
        console.print(f"left out, their embeddings are not finite: {first_of(bad)}", soft_wrap=True)
        images, names = images[finite], [n for n in names if n not in set(bad)]
        if not names:
            raise DataError("none of the images has a finite embedding; the model is broken")
    scores = retriever.encode_texts(options.texts) @ images.t()
    best = scores.topk(min(options.top, len(names)), dim=1)
    for text, row, columns in zip(options.texts, best.values, best.indices, strict=True):
        console.print(text, style="bold", soft_wrap=True)
        for rank, (score, column) in enumerate(zip(row, columns, strict=True), 1):
            line = f"{rank:4d}  {float(score):7.4f}  {names[int(column)]}"
            console.print(line, soft_wrap=True)


def _encode_folder(
    retriever: Retriever, folder: Path, console: PlainConsole
) -> tuple[Tensor, list[str], list[str]]:
    """Embeddings of the images in ``folder``, their files, and the files that cannot be read."""
    skipped: dict[str, str] = {}
    if retriever.model.view.kind == "regions":
        names = sorted(str(path) for path in folder.rglob("*.npy"))
        if not names:
            raise DataError(
                f"--images {folder}: no .npy files; this model reads region features, one array "
                "[regions, width] per image. Extract them with itr data features, or use a model "
                "that reads images (alip, albef, multisea)"
            )
    else:
        images, others = find_images(folder)
        if others:
            message = f"{len(others)} files are no images and are left out: {first_of(others)}"
            console.print(message, soft_wrap=True)
        names, skipped = retriever.readable(images)
    if skipped:
        console.print(f"skipped {len(skipped)} of {len(names) + len(skipped)} images:")
        for reason in skipped.values():
            console.print(f"  {reason}", soft_wrap=True)
    if not names:
        raise DataError(f"--images {folder}: none of the {len(skipped)} images can be read")
    with ProgressDisplay(console, 0, training=False) as display:
        return retriever.encode_images(names, display.evaluation), names, list(skipped)


def read_texts(path: Path) -> tuple[list[str], list[int]]:
    """The lines of a file that are not blank, and the numbers of the blank ones, from 1.

    Raises DataError if there are no others.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = content.split("\n")  # not at U+2028, as splitlines() does
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--texts {path}: cannot be read ({error})") from error
    lines = lines if lines[-1].strip() else lines[:-1]  # the end of the last line
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise DataError(f"--texts {path}: no text; expected one per line")
    return texts, [number for number, line in enumerate(lines, 1) if not line.strip()]


def read_embedded(path: Path, retriever: Retriever) -> tuple[Tensor, list[str]]:
    """Image embeddings [N, D] and their file names, from a file that `embed` wrote.

    Raises DataError for any other file, and for embeddings of another checkpoint or precision.
    """
    meta = checkpoint.read_meta(path)
    if meta.get("kind") != KIND or not meta.get("images"):
        raise DataError(f"{path}: no image embeddings; write them with itr embed --images DIR")
    missing = [key for key in ("checkpoint", "checkpoint_sha256", "precision") if key not in meta]
    names = meta["images"]
    if missing or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(
            f"{path}: damaged, its header lacks {', '.join(missing) or 'the names of the images'}; "
            "write it again with itr embed --images DIR"
        )
    if meta["checkpoint_sha256"] != retriever.origin["checkpoint_sha256"]:
        raise DataError(
            f"{path}: embeddings of another checkpoint ({meta['checkpoint']}); run itr embed again "
            "with this one"
        )
    if meta["precision"] != retriever.precision:
        raise DataError(
            f"{path}: embeddings in {meta['precision']}, but the texts would be encoded in "
            f"{retriever.precision}; pass --precision {meta['precision']}"
        )
    embeddings = checkpoint.read_tensors(path).get("images")
    if embeddings is None or embeddings.ndim != 2 or len(embeddings) != len(names):
        shape = None if embeddings is None else tuple(embeddings.shape)
        raise DataError(
            f"{path}: damaged, images of shape {shape} for {len(names)} names; write it again with "
            "itr embed --images DIR"
        )
    return embeddings, names
