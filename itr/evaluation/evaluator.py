"""A model and a split to results: encode everything once, rank, count. N images, C captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.data.loader import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text import TokenTable
from itr.errors import ConfigError, DataError
from itr.evaluation.protocols import applicable, evaluate_embeddings, find_protocols
from itr.evaluation.ranks import TIES
from itr.models.base import Encoded, RetrievalModel
from itr.view import View

log = logging.getLogger("itr")
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


class Evaluator:
    """Evaluates models on one split.

    ``protocols`` are names (`PROTOCOLS`) in their order: those that do not fit the split's number
    of images are left out with a warning and named in the results; if none fits, the whole split
    is ranked (``full``), as a validation split of another size than the test split must be. With
    ``strict`` each has to fit. ``precision`` (fp32, bf16, fp16) is that of encoding; scores are
    always float32. Raises ConfigError for a name, rule or size that cannot be used.
    """

    def __init__(
        self,
        data: Split,
        view: View,
        tokens: TokenTable,
        protocols: Sequence[str] = ("full",),
        batch_size: int = 128,
        ties: str = "pessimistic",
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        strict: bool = False,
    ):
        for key, value, known in (("ties", ties, TIES), ("precision", precision, tuple(AUTOCAST))):
            if value not in known:
                raise ConfigError(
                    f"{key}: '{value}' is unknown; expected one of {', '.join(known)}"
                )
        self.data, self.view, self.tokens = data, view, tokens
        self.batch_size, self.ties, self.device = batch_size, ties, torch.device(device)
        self.dtype = AUTOCAST[precision]
        self.protocols, self.left_out = applicable(find_protocols(protocols), data.n_images)
        if self.left_out:
            self._report_left_out(strict)

    def _report_left_out(self, strict: bool) -> None:
        names = ", ".join(f"{p.name} (needs {p.images} images)" for p in self.left_out)
        message = (
            f"split {self.data.name} has {self.data.n_images} images: not evaluated as {names}"
        )
        if strict:
            raise ConfigError(f"{message}; type data.protocols=[full] to rank the whole split")
        log.warning("%s; evaluated as %s", message, ", ".join(p.name for p in self.protocols))

    def run(self, model: RetrievalModel, progress: Progress | None = None) -> dict[str, Any]:
        """Flat results: the metrics of `evaluate_embeddings` and the fields that say what they are.

        Raises DataError if embeddings are not finite.
        """
        images, texts = self.encode(model, progress)
        metrics = evaluate_embeddings(
            images, texts, self.data.text_to_image, self.protocols, self.ties
        )
        return {**metrics, **self.fields()}

    def fields(self) -> dict[str, Any]:
        """What the metrics are of: strings and integers."""
        fields: dict[str, Any] = {
            "protocol": self.protocols[0].name,
            "tie_rule": self.ties,
            "split": self.data.name,
            "n_images": self.data.n_images,
            "n_captions": self.data.n_captions,
        }
        if self.left_out:
            fields["protocols_left_out"] = ",".join(p.name for p in self.left_out)
        return fields

    def encode(
        self, model: RetrievalModel, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of every image [N, D] and caption [C, D], float32 on the device, each made
        once. The model runs in eval mode and is left as it was."""
        data = self.data
        images = image_batches(data, self.view, self.batch_size, workers=0)
        captions = caption_batches(data, self.view, self.tokens, self.batch_size)
        with torch.inference_mode(), _eval_mode(model):
            return (
                self._encode("images", model.encode_images, images, data.n_images, progress),
                self._encode("captions", model.encode_texts, captions, data.n_captions, progress),
            )

    def _encode(
        self,
        what: str,
        encoder: Callable[[Batch], Encoded],
        batches: Iterable[Batch],
        total: int,
        progress: Progress | None,
    ) -> Tensor:
        embeddings, done = torch.empty(0), 0
        for batch in batches:
            rows = batch.image_id if what == "images" else batch.caption_id
            assert rows is not None
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                pooled = encoder(batch.to(self.device)).pooled.float()
            if not len(embeddings):
                embeddings = pooled.new_full((total, pooled.shape[1]), torch.nan)
            embeddings[rows.to(self.device)] = pooled
            done += len(rows)
            if progress is not None:
                progress(what, done, total)
        self._require_finite(what, embeddings)
        return embeddings

    def _require_finite(self, what: str, embeddings: Tensor) -> None:
        bad = ~torch.isfinite(embeddings).all(dim=1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} of {len(embeddings)} embeddings of the {what} of split "
                f"{self.data.name} are not finite (the first is number {int(bad.int().argmax())}): "
                "the weights have diverged or the half precision overflowed; try precision=fp32, "
                "a lower optim.lr or optim.clip_norm, or an earlier checkpoint"
            )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; afterwards each module gets back its own mode (they may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
