"""Gathering across real processes against what one process would do with all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing import spawn

from itr import parallel
from itr.data.records import Record, Split
from itr.errors import DataError
from itr.training.broken_images import BrokenPictures

WORLD, ROWS, WIDTH = 2, 3, 4


def rows_of(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)


def loss_of(everyone: Tensor) -> Tensor:
    """Something in which every row meets every other."""
    return (everyone @ everyone.t()).logsumexp(dim=1).sum()


def broken_counts(rank: int) -> list[int]:
    """How many broken pictures all ranks know after each round; -1: too many."""
    records = [Record(n, f"{n}.jpg", ("a",), (n,)) for n in range(9)]
    broken = BrokenPictures(Split("train", "table", records, broken_limit=3), known={7})
    counts = [broken.count()]
    for seen in (([4], []), ([], [2, 4]), ([], []), ([7], [8])):
        broken.see(seen[rank])
        try:
            counts.append(broken.count())
        except DataError as error:
            assert "4 of 9 pictures are broken" in str(error)
            counts.append(-1)
    return counts


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    found: dict[str, object] = {"rank": parallel.rank(), "world": parallel.world_size()}
    ids = torch.arange(ROWS) + 10 * rank
    found["ids"] = parallel.gather(ids)
    # A slice of every second column: what is sent must not depend on the layout in memory.
    found["strided"] = parallel.gather(rows_of(rank)[:, ::2])
    for gradient in ("none", "own", "full"):
        own = rows_of(rank).requires_grad_()
        everyone = parallel.gather(own, gradient)  # type: ignore[arg-type]
        found[f"{gradient}.rows"] = everyone.detach()
        if everyone.requires_grad:
            loss_of(everyone).backward()
        found[f"{gradient}.grad"] = own.grad
    found["broken"] = broken_counts(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_rank, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_everyone_knows_who_they_are(ranks: list[dict[str, object]]) -> None:
    assert [found["rank"] for found in ranks] == [0, 1]
    assert [found["world"] for found in ranks] == [WORLD, WORLD]


def test_rows_come_in_rank_order(ranks: list[dict[str, Tensor]]) -> None:
    everyone = torch.cat([rows_of(rank) for rank in range(WORLD)])
    for found in ranks:
        assert found["ids"].tolist() == [0, 1, 2, 10, 11, 12]
        assert torch.equal(found["strided"], everyone[:, ::2])
        for gradient in ("none", "own", "full"):
            assert torch.equal(found[f"{gradient}.rows"], everyone)


def test_gradients_of_own_rows_only_and_of_all_graphs(ranks: list[dict[str, Tensor]]) -> None:
    whole = torch.cat([rows_of(rank) for rank in range(WORLD)]).requires_grad_()
    loss_of(whole).backward()
    assert whole.grad is not None
    for rank, found in enumerate(ranks):
        share = whole.grad[rank * ROWS : (rank + 1) * ROWS]
        assert found["none.grad"] is None
        torch.testing.assert_close(found["own.grad"], share)
        torch.testing.assert_close(found["full.grad"], WORLD * share)


def test_broken_pictures_are_counted_together(ranks: list[dict[str, list[int]]]) -> None:
    """Each once, whoever met it; too many stop all ranks at the same time."""
    assert [found["broken"] for found in ranks] == [[1, 2, 3, 3, -1]] * WORLD


def test_one_process_needs_no_group() -> None:
    own = rows_of(0).requires_grad_()
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert not parallel.gather(own).requires_grad
    for gradient in ("own", "full"):
        assert parallel.gather(own, gradient) is own  # type: ignore[arg-type]
