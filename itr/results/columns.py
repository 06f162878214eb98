"""What a table's columns are: they hang on how its rows were evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from itr.evaluation.protocols import PROTOCOLS


@dataclass(frozen=True)
class Kind:
    """``columns``: the metrics of a table and their headings."""

    columns: tuple[tuple[str, str], ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, as in the results."""
        return tuple(metric for metric, _ in self.columns)

    @property
    def headings(self) -> tuple[str, ...]:
        """What stands above them."""
        return tuple(heading for _, heading in self.columns)


RETRIEVAL = Kind(
    (
        *((f"i2t_r{k}", f"{'i2t ' if k == 1 else ''}R@{k}") for k in (1, 5, 10)),
        *((f"t2i_r{k}", f"{'t2i ' if k == 1 else ''}R@{k}") for k in (1, 5, 10)),
        ("rsum", "rSum"),
    )
)
CXC = Kind((*RETRIEVAL.columns, ("i2i_r1", "i2i R@1"), ("t2t_r1", "t2t R@1")))
ECCV = Kind(
    tuple(
        (f"{way}_{metric}", f"{way} {heading}")
        for way in ("i2t", "t2i")
        for metric, heading in (("map_at_r", "mAP@R"), ("rprecision", "R-P"), ("r1", "R@1"))
    )
)
ZEROSHOT = Kind(
    (("top1", "top-1"), ("mean_per_class", "mean per class"), ("reported", "as papers report"))
)


def kind_of(protocol: str) -> Kind:
    """The columns of a table of ``protocol``."""
    if protocol == "zeroshot":
        return ZEROSHOT
    truth = PROTOCOLS[protocol].ground_truth if protocol in PROTOCOLS else None
    return {"cxc": CXC, "eccv": ECCV}.get(truth or "", RETRIEVAL)
