"""A trained model for one's own pictures and texts. N images, C texts, D width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.config import DECODERS
from itr.data.images.decode import decode, read_bytes
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError
from itr.evaluation.encode import AUTOCAST, Encoder, Progress
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import RetrievalModel
from itr.training.device import resolve_device, resolve_precision

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Retriever:
    """Encodes pictures and texts exactly as the evaluator does.

    ``precision`` is fp32, tf32, bf16 or fp16 (None: the one that the checkpoint was evaluated in);
    ``batch_size`` changes no number. Scores of images with
    texts are dot products of the two: ``images @ texts.T`` [N, C].
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
        return self.loaded.model

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights are from: file, its SHA-256, method, data, loss, seed."""
        return self.loaded.origin

    def encode_images(
        self, paths: Sequence[str | Path], progress: Progress | None = None
    ) -> Tensor:
        """[N, D] float32 on the CPU, a row a file, as the method scores it.

        Files are pictures, or for a method that reads regions ``.npy`` arrays [R, W] of one shape.
        Raises DataError, naming the file, for one that cannot be read, and for none at all.
        """
        split = self._split([str(path) for path in paths])
        view = self.model.view
        batches = image_batches(split, view, self.batch_size, self.workers)
        return self._encoder(progress).images(batches, split.n_images, "images").pooled.cpu()

    def encode_texts(self, texts: Sequence[str], progress: Progress | None = None) -> Tensor:
        """[C, D] float32 on the CPU, a row a text, as the method scores it.

        Raises DataError for an empty text, and for none at all.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise DataError("no texts to encode; expected at least one")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"text {number} is {text!r}; expected words")
        view = self.model.view
        split = Split("texts", "files", [Record(0, "", tuple(texts), tuple(range(len(texts))))])
        tokens = self.loaded.tokenizer.tokenize(texts, view.text_eval)
        batches = caption_batches(split, view, tokens, self.batch_size)
        return self._encoder(progress).texts(batches, len(texts), "texts").pooled.cpu()

    def readable(self, paths: Iterable[str | Path]) -> tuple[list[str], dict[str, str]]:
        """The pictures among ``paths`` that can be decoded, and of each other one why not."""
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
                f"{path}: {name} reads regions that a detector has found, not pictures; expected "
                f".npy files [regions, {width}], or a model that reads pixels"
            )
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
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
    """The model of ``source``: a run directory, a checkpoint, or an authors' file (``albef.pth``).

    ``model`` names the method and ``tokenizer`` a BERT (name or folder) where an authors' file does
    not say it. ``precision`` is as for `Retriever`. Raises CheckpointError for a file that is
    missing, broken or of another method, ConfigError for a device that is not there.
    """
    place = resolve_device(device)
    told: dict[str, Any] = {"name": model, "text": {"tokenizer": tokenizer}}
    loaded = load_checkpoint(source, told, place)
    return Retriever(loaded, place, precision, batch_size)


def find_images(folder: str | Path) -> list[Path]:
    """The picture files below ``folder``, sorted. Raises DataError if there is none."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(
            f"--images {folder}: holds no pictures; looked for {', '.join(SUFFIXES)} in it and "
            "below"
        )
    return found
