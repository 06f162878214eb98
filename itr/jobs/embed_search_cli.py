"""The commands around one's own files: embed them, search among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from itr import checkpoint
from itr.command import command
from itr.errors import DataError
from itr.jobs.retriever import Retriever, find_images, load
from itr.training.console import Display, close_log, open_log

KIND = "embedded files"


@command
def embed(arguments: Sequence[str]) -> None:
    """Encode a folder of pictures and a file of texts, one a line, into a safetensors file."""
    parser = _parser("embed", "pictures and texts -> embeddings (safetensors)")
    parser.add_argument("--images", type=Path, help="folder of pictures (.npy arrays for regions)")
    parser.add_argument("--texts", type=Path, help="file with a text a line")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    _run(_embed, parser.parse_args(arguments))


@command
def search(arguments: Sequence[str]) -> None:
    """Print the pictures of a folder that fit each text best."""
    parser = _parser("search", "the pictures that fit a text best")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--embeddings", type=Path, help="what itr embed wrote, instead of pictures")
    parser.add_argument("--top", type=int, default=10, help="how many to show (10)")
    _run(_search, parser.parse_args(arguments))


def _parser(name: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"itr {name}", description=what)
    parser.add_argument("checkpoint", help="run directory, checkpoint, or an authors' file")
    parser.add_argument("--model", help="the method, where an authors' file does not say it")
    parser.add_argument("--tokenizer", help="BERT name or folder, for an authors' file")
    parser.add_argument("--device", default="auto")
    told = "fp32, bf16 or fp16 (default: as the checkpoint was evaluated)"
    parser.add_argument("--precision", help=told)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def _run(function: Callable[[argparse.Namespace, Console], None], options: Any) -> None:
    console = Console()
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


def _embed(options: argparse.Namespace, console: Console) -> None:
    if options.images is None and options.texts is None:
        raise DataError("nothing to embed; type --images DIR, --texts FILE or both")
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
        meta["texts"] = read_texts(options.texts)
        with Display(console, 0, training=False) as display:
            tensors["texts"] = retriever.encode_texts(meta["texts"], display.evaluation)
    checkpoint.write(options.out, tensors, meta)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
    console.print(f"{options.out}: {shapes}", highlight=False, soft_wrap=True)


def _search(options: argparse.Namespace, console: Console) -> None:
    if (options.images is None) == (options.embeddings is None):
        raise DataError("where to search? type --images DIR or --embeddings FILE")
    if options.top < 1:
        raise DataError(f"--top {options.top}: expected at least 1")
    retriever = _load(options)
    if options.images is not None:
        images, names, _ = _encode_folder(retriever, options.images, console)
    else:
        images, names = read_embedded(options.embeddings, retriever)
    scores = retriever.encode_texts(options.texts) @ images.t()
    best = scores.topk(min(options.top, len(names)), dim=1)
    for text, row, columns in zip(options.texts, best.values, best.indices, strict=True):
        console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)
        for rank, (score, column) in enumerate(zip(row, columns, strict=True), 1):
            line = f"{rank:4d}  {float(score):7.4f}  {names[int(column)]}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _encode_folder(
    retriever: Retriever, folder: Path, console: Console
) -> tuple[Tensor, list[str], list[str]]:
    """Embeddings, the files they are of, and the files that were skipped and told of."""
    skipped: dict[str, str] = {}
    if retriever.model.view.kind == "regions":
        names = sorted(str(path) for path in folder.rglob("*.npy"))
    else:
        names, skipped = retriever.readable(find_images(folder))
    if skipped:
        console.print(f"skipped {len(skipped)} of {len(names) + len(skipped)} pictures:")
        for reason in skipped.values():
            console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    if not names:
        raise DataError(f"--images {folder}: nothing in it can be read")
    with Display(console, 0, training=False) as display:
        return retriever.encode_images(names, display.evaluation), names, list(skipped)


def read_texts(path: Path) -> list[str]:
    """The lines of a file that hold something. Raises DataError if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--texts {path}: cannot be read ({error})") from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise DataError(f"--texts {path}: holds no text; expected one a line")
    return texts


def read_embedded(path: Path, retriever: Retriever) -> tuple[Tensor, list[str]]:
    """Images [N, D] and file names of what `embed` wrote with the same checkpoint.

    Raises DataError for another file, and for embeddings of another checkpoint or precision.
    """
    meta = checkpoint.read_meta(path)
    if meta.get("kind") != KIND or not meta.get("images"):
        raise DataError(f"{path}: holds no embedded pictures; make it with itr embed")
    if meta["checkpoint_sha256"] != retriever.origin["checkpoint_sha256"]:
        raise DataError(
            f"{path}: embeddings of another checkpoint ({meta['checkpoint']}); embed the pictures "
            "again"
        )
    if meta["precision"] != retriever.precision:
        raise DataError(
            f"{path}: embeddings in {meta['precision']}, the texts would be in "
            f"{retriever.precision}; type --precision {meta['precision']}"
        )
    return checkpoint.read_tensors(path)["images"], meta["images"]
