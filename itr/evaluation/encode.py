"""Encodes batches into embeddings, each image and caption once, in eval mode. B rows per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.errors import DataError
from itr.models.base import Encoded, RetrievalModel
from itr.parallel import all_gather_objects, all_reduce_sum, stop_all_ranks, world_size

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[str, int, int], None]  # name of the stage, number done, total


class Encoder:
    """Encodes with ``model`` on ``device``.

    ``pooled`` is float32. With ``tokens``, the tokens are returned in the ``precision`` of encoding
    (fp32, tf32, bf16, fp16). The process ranks share the batches, and each gets all rows. If
    ``progress`` raises Stopped on one rank, every rank raises it.
    """

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

    def images(self, batches: Iterable[Batch], total: int, name: str) -> Encoded:
        """Encode the ``total`` images of ``batches``; rows are ordered by ``image_id``.

        ``name`` describes them in error messages. Raises DataError if embeddings are not finite.
        """
        return self._encode("images", self.model.encode_images, batches, total, name)

    def texts(self, batches: Iterable[Batch], total: int, name: str) -> Encoded:
        """Encode the ``total`` captions of ``batches``; rows are ordered by ``caption_id``."""
        return self._encode("captions", self.model.encode_texts, batches, total, name)

    def _encode(
        self,
        side: str,
        encoder: Callable[[Batch], Encoded],
        batches: Iterable[Batch],
        total: int,
        name: str,
    ) -> Encoded:
        pooled = _RowBuffer(total, torch.float32, torch.nan)
        tokens = _RowBuffer(total, self.dtype or torch.float32, 0)
        masks = _RowBuffer(total, torch.bool, False)
        done = 0
        with torch.inference_mode(), eval_mode(self.model), stop_all_ranks():
            for batch in batches:
                rows = batch.image_id if side == "images" else batch.caption_id
                assert rows is not None
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    encoded = encoder(batch.to(self.device))
                done = min(total, done + len(rows) * world_size())
                rows = rows.to(self.device)
                pooled.put(rows, encoded.pooled)
                if self.tokens:
                    tokens.put(rows, encoded.tokens)
                    masks.put(rows, encoded.mask)
                if self.progress is not None:
                    self.progress(side, done, total)
        for rows_of_rank in (pooled, tokens, masks):
            rows_of_rank.gather(self.device)
        assert pooled.values is not None
        _require_finite(name, pooled.values)
        return Encoded(pooled.values, tokens.values, masks.values)


def _require_finite(name: str, embeddings: Tensor) -> None:
    bad = ~torch.isfinite(embeddings).all(dim=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(embeddings)} embeddings of the {name} are not finite (first "
            f"index: {int(bad.int().argmax())}): the weights have diverged or half precision "
            "overflowed; pass precision=fp32, a lower optim.lr or optim.max_norm, or use an "
            "earlier checkpoint"
        )


class _RowBuffer:
    """A tensor that is filled row by row; batches may have different lengths in dimension 1."""

    def __init__(self, total: int, dtype: torch.dtype, empty: float):
        self.total, self.dtype, self.empty = total, dtype, empty
        self.values: Tensor | None = None
        self.own: list[Tensor] = []  # rows written by this process rank

    def put(self, rows: Tensor, values: Tensor | None) -> None:
        """Write ``values`` [B, ...] to ``rows`` [B]; the rest of a longer row stays empty."""
        if values is None:
            return
        previous, shape = self.values, (self.total, *values.shape[1:])
        if previous is None or previous.shape[1] < shape[1]:
            self.values = values.new_full(shape, self.empty, dtype=self.dtype)
            if previous is not None:
                self.values[:, : previous.shape[1]] = previous
        assert self.values is not None
        self.values[rows, : shape[1]] = values.to(self.dtype)
        self.own.append(rows)

    def gather(self, device: torch.device) -> None:
        """Give every process rank all rows. Each row is written once, so a sum copies exactly."""
        if world_size() == 1:
            return
        shapes_by_rank = all_gather_objects(
            None if self.values is None else tuple(self.values.shape[1:])
        )
        shapes = [shape for shape in shapes_by_rank if shape is not None]
        if not shapes:
            return
        kind = torch.uint8 if self.dtype == torch.bool else self.dtype
        shape = (self.total, *(max(sizes) for sizes in zip(*shapes, strict=True)))
        merged = torch.zeros(shape, dtype=kind, device=device)
        if self.values is not None:
            rows = torch.cat(self.own)
            merged[rows, : self.values.shape[1]] = self.values[rows].to(kind)
        self.values = all_reduce_sum(merged).to(self.dtype)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode; on exit, every module gets its previous mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
