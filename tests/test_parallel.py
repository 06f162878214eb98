"""Collectives over two real processes, compared with one process that has all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from itr import parallel
from itr.data.records import Record, Split
from itr.errors import DataError
from itr.training.faults.broken_images import BrokenImages
from tests.processes import run_ranks

WORLD, ROWS, WIDTH = 2, 3, 4


def rows_of(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)


def loss_of(gathered: Tensor) -> Tensor:
    """A loss in which every row interacts with every other row."""
    return (gathered @ gathered.t()).logsumexp(dim=1).sum()


def broken_counts(rank: int) -> list[int]:
    """Number of broken images that all ranks know of after each round; -1: too many."""
    records = [Record(n, f"{n}.jpg", ("a",), (n,)) for n in range(9)]
    broken = BrokenImages(Split("train", "table", records, broken_limit=3), known={7})
    counts = [broken.synchronize()]
    for seen in (([4], []), ([], [2, 4]), ([], []), ([7], [8])):
        broken.add(seen[rank])
        try:
            counts.append(broken.synchronize())
        except DataError as error:
            assert "4 of 9 images" in str(error)
            counts.append(-1)
    return counts


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    result: dict[str, object] = {"rank": parallel.rank(), "world": parallel.world_size()}
    ids = torch.arange(ROWS) + 10 * rank
    result["ids"] = parallel.all_gather(ids)
    # Every second column: the result must not depend on the memory layout.
    result["strided"] = parallel.all_gather(rows_of(rank)[:, ::2])
    for gradient in ("none", "local", "full"):
        rows = rows_of(rank).requires_grad_()
        gathered = parallel.all_gather(rows, gradient)  # type: ignore[arg-type]
        result[f"{gradient}.rows"] = gathered.detach()
        if gathered.requires_grad:
            loss_of(gathered).backward()
        result[f"{gradient}.grad"] = rows.grad
    result["broken"] = broken_counts(rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(_rank, str(folder), world=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_rank_and_world_size(ranks: list[dict[str, object]]) -> None:
    assert [result["rank"] for result in ranks] == [0, 1]
    assert [result["world"] for result in ranks] == [WORLD, WORLD]


def test_rows_are_in_rank_order(ranks: list[dict[str, Tensor]]) -> None:
    whole = torch.cat([rows_of(rank) for rank in range(WORLD)])
    for result in ranks:
        assert result["ids"].tolist() == [0, 1, 2, 10, 11, 12]
        assert torch.equal(result["strided"], whole[:, ::2])
        for gradient in ("none", "local", "full"):
            assert torch.equal(result[f"{gradient}.rows"], whole)


def test_gradients_of_the_local_graph_and_of_all_graphs(ranks: list[dict[str, Tensor]]) -> None:
    whole = torch.cat([rows_of(rank) for rank in range(WORLD)]).requires_grad_()
    loss_of(whole).backward()
    assert whole.grad is not None
    for rank, result in enumerate(ranks):
        share = whole.grad[rank * ROWS : (rank + 1) * ROWS]
        assert result["none.grad"] is None
        torch.testing.assert_close(result["local.grad"], share)
        torch.testing.assert_close(result["full.grad"], WORLD * share)


def test_broken_images_are_counted_over_all_ranks(ranks: list[dict[str, list[int]]]) -> None:
    """Each image counts once, whichever rank met it; too many stop all ranks at the same time."""
    assert [result["broken"] for result in ranks] == [[1, 2, 3, 3, -1]] * WORLD


def test_a_single_process_needs_no_process_group() -> None:
    rows = rows_of(0).requires_grad_()
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert not parallel.all_gather(rows).requires_grad
    for gradient in ("local", "full"):
        assert parallel.all_gather(rows, gradient) is rows  # type: ignore[arg-type]
