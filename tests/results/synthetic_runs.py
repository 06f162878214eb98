"""Synthetic run directories with results, made in milliseconds from random embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from itr.evaluation.protocol_metrics import evaluate_embeddings
from itr.evaluation.protocols import PROTOCOLS
from itr.evaluation.query_log import build_query_log
from itr.evaluation.ranks import Ranks
from itr.evaluation.retrieval_set import RetrievalSet
from itr.evaluation.score_tables import EmbeddingTable
from itr.results.results_file import write_results

IMAGES, EACH = 40, 5


def run(
    folder: Path, noise: float = 1.0, seed: int | None = 0, images: int = IMAGES, **more: Any
) -> Path:
    """A finished run of ``images`` images; captions are their images plus ``noise``."""
    random = torch.Generator().manual_seed(seed or 0)
    owner = np.repeat(np.arange(images), EACH)
    vectors = torch.randn(images, 6, generator=random)
    texts = vectors[owner] + noise * torch.randn(len(owner), 6, generator=random)
    kept: dict[str, Ranks] = {}
    found = evaluate_embeddings(vectors, texts, owner, [PROTOCOLS["full"]], ranks_by_name=kept)
    gallery = RetrievalSet(owner, images)
    log = build_query_log(EmbeddingTable(vectors, texts), gallery, [PROTOCOLS["full"]], kept)
    log.save(folder, "test", {"checkpoint": "none"})
    results = {
        "run": folder.name,
        "model": "hrem",
        "data": "scenes",
        "loss": "hrem",
        "seed": seed,
        "select_on": "val",
        "seedless_hash": "aa",
        "trained_on": "scenes",
        **{f"test/{key}": value for key, value in found.items()},
        "test/protocol": "full",
        "test/tie_break": "pessimistic",
        "test/n_images": images,
        "test/n_captions": len(owner),
        **more,
    }
    if "test/protocol" in more:  # the same metrics under another protocol name
        write_log = {str(more["test/protocol"]): kept["full"]}
        log.ranks = write_log
        log.save(folder, "test", {"checkpoint": "none"})
    write_results(folder, results)
    config = {"model": {"name": results["model"]}, "loss": {"name": results["loss"]}, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "batch_size": 30 + len(more)}))
    return folder
