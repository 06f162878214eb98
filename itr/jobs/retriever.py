"""A trained model for a user's own images and texts. N images, C texts, D width."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.array_files import read_array
from itr.data.config import DECODERS
from itr.data.image_files import files_below, is_image
from itr.data.images.decode import decode, read_bytes
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Record, Split
from itr.data.text.token_table import truncation_notes
from itr.errors import ConfigError, DataError, first_of
from itr.evaluation.encode import AUTOCAST, Encoder, Progress
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import RetrievalModel
from itr.training.device import resolve_device, resolve_precision

log = logging.getLogger("itr")


class Retriever:
    """Encodes images and texts exactly as the evaluator does.

    ``precision`` is fp32, tf32, bf16 or fp16 (None: that of the checkpoint's evaluation).
    ``batch_size`` does not change the embeddings. Scores are dot products: ``images @ texts.T``
    [N, C].
    """

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        device: torch.device,
        precision: str | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ):
        precision = resolve_precision(precision or loaded.precision, device)
        if precision not in AUTOCAST:
            raise ConfigError(f"precision: '{precision}'; expected one of {', '.join(AUTOCAST)}")
        self.loaded, self.device, self.precision = loaded, device, precision
        self.batch_size, self.workers = batch_size, workers
        self.decoder: str = (loaded.data or {}).get("decoder", DECODERS[0])

    @property
    def model(self) -> RetrievalModel:
        """The network, in eval mode."""
        return self.loaded.retriever

    @property
    def origin(self) -> dict[str, Any]:
        """Origin of the weights: file, SHA-256, method, data, loss, seed."""
        return self.loaded.origin

    def encode_images(
        self, paths: Sequence[str | Path], progress: Progress | None = None
    ) -> Tensor:
        """Embeddings of image files, [N, D] float32 on the CPU, in the order of ``paths``.

        For a method that reads region features, files are ``.npy`` arrays [regions, width] of one
        shape. Raises DataError for a file that cannot be read, and without any file.
        """
        split = self._split([str(path) for path in paths])
        view = self.model.view
        batches = image_batches(split, view, self.batch_size, self.workers)
        return self._encoder(progress).images(batches, split.n_images, "images").pooled.cpu()

    def encode_texts(self, texts: Sequence[str], progress: Progress | None = None) -> Tensor:
        """Embeddings of texts, [C, D] float32 on the CPU, in the order of ``texts``.

        Raises DataError for an empty text, and without any text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise DataError("no texts to encode; expected at least one")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"text {number} is {text!r}; expected a string with words")
        view = self.model.view
        split = Split("texts", "files", [Record(0, "", tuple(texts), tuple(range(len(texts))))])
        tokens = self.loaded.tokenizer.tokenize(texts, view.text_eval)
        for line in truncation_notes("texts", tokens, view.text_eval):
            log.warning("%s", line)
        batches = caption_batches(split, view, tokens, self.batch_size)
        return self._encoder(progress).texts(batches, len(texts), "texts").pooled.cpu()

    def readable(self, paths: Iterable[str | Path]) -> tuple[list[str], dict[str, str]]:
        """The images that can be decoded, and the reason for each of the others, by path."""
        good: list[str] = []
        bad: dict[str, str] = {}
        for path in map(str, paths):
            try:
                decode(read_bytes(path), path, self.decoder)
                good.append(path)
            except DataError as error:
                bad[path] = str(error)
        return good, bad

    def _encoder(self, progress: Progress | None) -> Encoder:
        return Encoder(self.model, self.device, self.precision, progress=progress)

    def _split(self, paths: list[str]) -> Split:
        if not paths:
            raise DataError("no images to encode; expected at least one file")
        if self.model.view.kind == "pixels":
            records = [Record(number, path, (), ()) for number, path in enumerate(paths)]
            return Split("images", "files", records, decoder=self.decoder, source=paths[0])
        arrays = [self._regions(path) for path in paths]
        if len({array.shape for array in arrays}) > 1:
            raise DataError("the region arrays differ in shape; encode those of one shape together")
        records = [Record(number, number, (), ()) for number in range(len(paths))]
        return Split("images", "files", records, np.stack(arrays), source=paths[0])

    def _regions(self, path: str) -> np.ndarray:
        width, name = self.model.facts.region_width, type(self.model).__name__
        if not path.endswith(".npy"):
            raise DataError(
                f"{path}: {name} reads region features, not images; expected .npy files [regions, "
                f"{width}] (extract them with itr data features). Or use a model that reads images"
            )
        try:
            array = read_array(Path(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        if array.ndim != 2 or array.shape[1] != width or array.dtype.kind != "f":
            raise DataError(
                f"{path}: {array.dtype} of shape {array.shape}; expected floats [regions, {width}]"
            )
        return array


def load(
    source: str | Path,
    device: str = "auto",
    precision: str | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    batch_size: int = 64,
) -> Retriever:
    """Load a run directory, a checkpoint, or an authors' file (``albef.pth``).

    ``model`` is the method and ``tokenizer`` a BERT (name or folder), for an authors' file that
    does not contain them. ``precision`` is as for `Retriever`. Raises CheckpointError for a file
    that is missing, broken or of another method, ConfigError for a device that is not available.
    """
    target = resolve_device(device)
    options: dict[str, Any] = {"name": model, "text": {"tokenizer": tokenizer}}
    loaded = load_checkpoint(source, options, target)
    return Retriever(loaded, target, precision, batch_size)


def find_images(folder: str | Path) -> tuple[list[Path], list[str]]:
    """The images in ``folder`` and below, sorted, and the files that are none.

    Images are recognized by their ending, or else by their first bytes. Raises DataError if there
    are none.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder; pass the folder of the images")
    images, others = list[Path](), list[str]()
    for path in files_below(folder):
        if is_image(path):
            images.append(Path(path))
        else:
            others.append(path)
    if not images:
        raise DataError(
            f"--images {folder}: contains no images, in it or in its subfolders; its "
            f"{len(others)} files are of other kinds ({first_of(others) or 'none'}). Pass the "
            "folder of the images"
        )
    return images, others
