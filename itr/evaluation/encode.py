"""Batches to embeddings: each image and caption once, in eval mode, checked. B rows a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.errors import DataError
from itr.models.base import Encoded, RetrievalModel
from itr.parallel import add_up, gather_objects, left_together, world_size

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


class Encoder:
    """Encodes with ``model`` on ``device``: ``pooled`` in float32 and, with ``tokens``, tokens in
    the ``precision`` of encoding (fp32, tf32, bf16, fp16). Ranks share the batches, and all get all
    rows. Where ``progress`` raises Stopped on one of them, all of them do."""

    def __init__(
        self,
        model: RetrievalModel,
        device: torch.device,
        precision: str = "fp32",
        tokens: bool = False,
        progress: Progress | None = None,
    ):
        self.model, self.device, self.dtype = model, device, AUTOCAST[precision]
        self.tokens, self.progress = tokens, progress

    def images(self, batches: Iterable[Batch], total: int, what: str) -> Encoded:
        """The ``total`` images of ``batches``, in the order of their ``image_id``.

        ``what`` names them in a message. Raises DataError if embeddings are not finite.
        """
        return self._encode("images", self.model.encode_images, batches, total, what)

    def texts(self, batches: Iterable[Batch], total: int, what: str) -> Encoded:
        """The ``total`` captions of ``batches``, in the order of their ``caption_id``."""
        return self._encode("captions", self.model.encode_texts, batches, total, what)

    def _encode(
        self,
        side: str,
        encoder: Callable[[Batch], Encoded],
        batches: Iterable[Batch],
        total: int,
        what: str,
    ) -> Encoded:
        pooled = _Rows(total, torch.float32, torch.nan)
        kept, masks = _Rows(total, self.dtype or torch.float32, 0), _Rows(total, torch.bool, False)
        done = 0
        with torch.inference_mode(), eval_mode(self.model), left_together():
            for batch in batches:
                rows = batch.image_id if side == "images" else batch.caption_id
                assert rows is not None
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    encoded = encoder(batch.to(self.device))
                done = min(total, done + len(rows) * world_size())
                rows = rows.to(self.device)
                pooled.put(rows, encoded.pooled)
                if self.tokens:
                    kept.put(rows, encoded.tokens)
                    masks.put(rows, encoded.mask)
                if self.progress is not None:
                    self.progress(side, done, total)
        for filled in (pooled, kept, masks):
            filled.meet(self.device)
        assert pooled.values is not None
        _require_finite(what, pooled.values)
        return Encoded(pooled.values, kept.values, masks.values)


def _require_finite(what: str, embeddings: Tensor) -> None:
    bad = ~torch.isfinite(embeddings).all(dim=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(embeddings)} embeddings of the {what} are not finite (the "
            f"first is number {int(bad.int().argmax())}): the weights have diverged or the half "
            "precision overflowed; try precision=fp32, a lower optim.lr or optim.clip_norm, or an "
            "earlier checkpoint"
        )


class _Rows:
    """A tensor that is filled some rows at a time; later batches may be shorter or longer."""

    def __init__(self, total: int, dtype: torch.dtype, empty: float):
        self.total, self.dtype, self.empty = total, dtype, empty
        self.values: Tensor | None = None
        self.own: list[Tensor] = []  # the rows that this rank has put

    def put(self, rows: Tensor, values: Tensor | None) -> None:
        """``values`` [B, ...] become the rows ``rows`` [B]; past their length a row stays empty."""
        if values is None:
            return
        had, shape = self.values, (self.total, *values.shape[1:])
        if had is None or had.shape[1] < shape[1]:
            self.values = values.new_full(shape, self.empty, dtype=self.dtype)
            if had is not None:
                self.values[:, : had.shape[1]] = had
        assert self.values is not None
        self.values[rows, : shape[1]] = values.to(self.dtype)
        self.own.append(rows)

    def meet(self, device: torch.device) -> None:
        """Every rank gets the rows of all ranks. No row is put twice, so a sum copies exactly."""
        if world_size() == 1:
            return
        found = gather_objects(None if self.values is None else tuple(self.values.shape[1:]))
        shapes = [shape for shape in found if shape is not None]
        if not shapes:
            return
        kind = torch.uint8 if self.dtype == torch.bool else self.dtype
        shape = (self.total, *(max(sizes) for sizes in zip(*shapes, strict=True)))
        everyone = torch.zeros(shape, dtype=kind, device=device)
        if self.values is not None:
            rows = torch.cat(self.own)
            everyone[rows, : self.values.shape[1]] = self.values[rows].to(kind)
        self.values = add_up(everyone).to(self.dtype)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; afterwards each module gets back its own mode (they may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
