"""Opens an evaluation with its data, for a gallery page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from itr.data.layouts.registry import DataConfig
from itr.data.records import Split
from itr.errors import DataError
from itr.evaluation.query_log import QueryLog, read_queries
from itr.instantiate import check
from itr.results.gallery.query_cases import QueryCase
from itr.results.gallery.thumbnails import SIDE, Thumbnails, data_uri, image_label, open_thumbnails

BEST = Path("checkpoints") / "best.safetensors"


@dataclass
class EvaluatedRun:
    """The query log, the data and the thumbnails of an evaluated run."""

    folder: Path
    split_name: str
    log: QueryLog
    split: Split
    data: DataConfig
    thumbnails: Thumbnails
    protocol: str
    captions: list[str] = field(init=False)
    cached_uris: dict[int, str] = field(default_factory=dict)
    side: int = SIDE  # of the thumbnails, in pixels

    def __post_init__(self) -> None:
        self.captions = self.split.captions()
        actual = len(self.split.records), len(self.captions)
        expected = len(self.log.image_ids), len(self.log.caption_ids)
        ids = [record.image_id for record in self.split.records]
        if actual != expected or ids != self.log.image_ids.tolist():
            raise DataError(
                f"{self.split.source}: has {actual[0]} images and {actual[1]} captions; the "
                f"evaluation in {self.folder} used {expected[0]} and {expected[1]}, or others. The "
                f"data has changed: evaluate again with python eval.py checkpoint={self.folder} "
                f"out={self.folder}-{self.split_name}"
            )

    def image_uri(self, image: int) -> str:
        """The thumbnail of an image as a data URI; empty if there is none."""
        if image not in self.cached_uris:
            thumbnail = self.thumbnails.get(image, self.side)
            self.cached_uris[image] = "" if thumbnail is None else data_uri(thumbnail)
        return self.cached_uris[image]

    def image_label(self, image: int) -> str:
        """The name of the image's file, or its id where it has no file of its own."""
        return image_label(self.split.records[image])

    def resize_thumbnails(self, side: int) -> None:
        """Make the thumbnails of `image_uri` at most ``side`` pixels wide and high."""
        if side != self.side:
            self.side = side
            self.cached_uris.clear()

    def rank_text(self, case: QueryCase, log: QueryLog | None = None) -> str:
        """The rank; if the match is not among the re-ranked candidates, a lower bound.

        ``log``: the one that the case is from (default: of this run).
        """
        depth = (log or self.log).metadata.get("rerank_k")
        return f"> {depth}" if depth and case.match_score is None else f"{case.rank:g}"

    def checkpoint(self) -> tuple[Path | None, str]:
        """The evaluated checkpoint, or None and the reason why there is no single one."""
        paths = [Path(name) for name in self.log.metadata.get("checkpoints", [])]
        if len(paths) > 1:
            return None, (
                f"the scores are the mean of {len(paths)} models. For the maps of one model, run "
                f"python eval.py checkpoint={paths[0]} out=DIR, then itr gallery DIR"
            )
        path = paths[0] if paths else self.folder / BEST
        tower = (self.log.metadata.get("model_options") or {}).get("tower")
        if tower and not path.is_file():
            return None, f"the scores are those of the tower {tower}, which has no checkpoint"
        return (path, "") if path.is_file() else (None, f"{path} does not exist any more")


def open_run(folder: Path, split: str = "test", protocol: str | None = None) -> EvaluatedRun:
    """Open the evaluation of ``split`` in ``folder`` and its data.

    Raises DataError if one of them is missing, if the data has changed, or if ``protocol`` was not
    evaluated.
    """
    log = read_queries(folder, split)
    if not log.ranks:
        raise DataError(
            f"{folder}: only evaluated with {', '.join(log.extra_ranks)}, whose ground truth the "
            "gallery does not support; evaluate again with another protocol, e.g. protocol=full"
        )
    protocol = protocol or next(iter(log.ranks))
    if protocol not in log.ranks:
        raise DataError(
            f"{folder}: not evaluated with --protocol {protocol}; pass one of "
            f"{', '.join(log.ranks)}"
        )
    if not log.metadata.get("data") or not log.metadata.get("kind"):
        raise DataError(
            f"{folder}: evaluated from a score file without a dataset, so there are no images to "
            "show; evaluate a checkpoint instead"
        )
    data: DataConfig = check(log.metadata["data"], DataConfig, "data")
    opened, thumbnails = open_thumbnails(data, split, log.metadata["kind"])
    return EvaluatedRun(folder, split, log, opened, data, thumbnails, protocol)
