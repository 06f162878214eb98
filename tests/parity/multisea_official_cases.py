"""Golden cases of Multi-SEA: two ranks, re-ranking, metrics, the authors' checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.protocol_metrics import evaluate_protocols, evaluate_scores
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Ranks, rank_scores
from itr.evaluation.rerank import RerankConfig, rerank
from itr.evaluation.retrieval_set import RetrievalSet, Subset
from itr.evaluation.shortlists import Shortlist, ShortlistTable
from itr.models.base import Encoded
from itr.models.multisea import MultiSEA
from itr.nn.agent_attention import PairRows
from itr.official.multisea import export, is_unused, official_state, read
from tests.parity.harness import Case, Runner
from tests.parity.multisea_build import batch_of, model_of
from tests.parity.multisea_ranks import run_ranks

NOT_RANKED = -100.0  # what the authors give a candidate outside the shortlist


def losses_ranks(case: Case) -> None:
    """Gradients of a rank's inputs hold what the other ranks send back; DDP averages weights'."""
    kept = run_ranks(case)
    for rank, found in enumerate(kept):
        for key in case.below(f"out.rank{rank}."):
            post = key.removeprefix("post_")
            value = found["post"][post] if post != key else found[key]
            case.check(f"out.rank{rank}.{key}", value)
        for key in case.below(f"grad.rank{rank}.in."):
            case.check(f"grad.rank{rank}.in.{key}", found["grad.in"][key])
    for name in case.below("grad.ddp_mean."):
        mean = torch.stack([found["grad"][name] for found in kept]).mean(dim=0)
        case.check(f"grad.ddp_mean.{name}", mean)


# Evaluation


def _check_metrics(case: Case, what: str, metrics: Mapping[str, float], prefix: str, named) -> None:
    """Theirs count i2t as ``txt`` and t2i as ``img``."""
    ways = {"i2t": "txt", "t2i": "img"}
    found = {
        f"{theirs}_r{k}": metrics[f"{ours}_r{k}"]
        for ours, theirs in ways.items()
        for k in (1, 5, 10)
    }
    for theirs in ways.values():
        found[f"{theirs}_r_mean"] = float(np.mean([found[f"{theirs}_r{k}"] for k in (1, 5, 10)]))
    found["r_mean"], found["r_sum"] = metrics["rsum"] / 6, metrics["rsum"]
    for key, value in found.items():
        case.equal(f"{what}: {key}", value, named[prefix + key], atol=1e-9)


def metrics(case: Case) -> None:
    owner = case["in.image_of_text"].numpy()
    dense = evaluate_scores(case["in.dense"], owner, [Protocol("full")])
    _check_metrics(case, "dense", dense, "", case.data["dense"])
    # Outside the shortlists everything ties; the authors' sort leaves it in any order, which no
    # recall sees whose list is longer than its K.
    sides = [
        rank_scores(case["in.sparse_i2t"], owner).i2t,
        rank_scores(case["in.sparse_t2i"].t(), owner).t2i,
    ]
    _check_metrics(case, "sparse", retrieval_metrics(Ranks(*sides)), "", case.data["sparse"])


def _encoded(case: Case) -> tuple[Encoded, Encoded]:
    return (
        Encoded(case["in.image_feats"], case["in.image_embeds"]),
        Encoded(case["in.text_feats"], case["in.text_embeds"], case["in.text_atts"].bool()),
    )


def rerank_eval(case: Case) -> None:
    model = model_of(case).eval()
    with torch.no_grad():
        model.temp.copy_(case["in.temp"])
    images, texts = _encoded(case)
    owner, k = case["in.image_of_text"].numpy(), case.data["top_k"]
    config = RerankConfig(k=k, batch_size=250)
    with torch.inference_mode():
        lists = rerank(model, images, texts, config)
    for name, shortlist, shape in zip(
        ("i2t", "t2i"), lists, (case["out.score_i2t"], case["out.score_t2i"]), strict=True
    ):
        found = torch.full_like(shape, NOT_RANKED)
        found.scatter_(1, shortlist.candidates, shortlist.scores)
        case.account_for(f"out.score_{name}")
        case.equal(f"scores.{name}", found, shape)
    results = case.data["results"]

    def table(part: Subset) -> ShortlistTable:
        cut = lambda e, at: Encoded(  # noqa: E731
            e.pooled[at], e.tokens[at], None if e.mask is None else e.mask[at]
        )
        with torch.inference_mode():
            found: tuple[Shortlist, Shortlist] = rerank(
                model, cut(images, part.images), cut(texts, part.captions), config
            )
        return ShortlistTable(*found)

    folds = Protocol("folds", fold=len(images.pooled) // 5)
    gallery = RetrievalSet(owner, len(images.pooled))
    both = evaluate_protocols(table, gallery, [Protocol("full"), folds])
    _check_metrics(case, "full", both, "", results["full"])
    mean = {key.removeprefix("folds/"): v for key, v in both.items() if key.startswith("folds/")}
    wrapped = results["epoch_wrapup_1k+5k"]
    _check_metrics(case, "1k", mean, "val_coco1k/", wrapped)
    _check_metrics(case, "5k", both, "val_coco5k/", wrapped)
    _check_metrics(case, "whole", both, "val_coco1k/", results["epoch_wrapup_"])


# The authors' file


def _model(path: Path, heads: int) -> MultiSEA:
    imported = read(path, text={"heads": heads})
    model = MultiSEA(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    imported.load_into(model)
    return model.eval()


def _roberta_heads(case: Case, path: Path) -> int:
    """Neither file nor case says how many heads the RoBERTa has: those that come nearest."""
    width = torch.load(path, weights_only=True)["state_dict"]["text_proj_f.weight"].shape[1]
    batch, gaps = batch_of(case), {}
    for heads in (n for n in range(1, 17) if width % n == 0):
        with torch.no_grad():
            feats = _model(path, heads).encode_texts(batch).pooled
        gaps[heads] = float((feats - case["out.text_feats"]).abs().max())
    return min(gaps, key=lambda heads: gaps[heads])


def official_checkpoint(case: Case) -> None:
    path = case.path.parent / case.data["file"]
    options = torch.load(path, weights_only=True)["hyper_parameters"]["config"]
    heads = {"heads": _roberta_heads(case, path)}
    imported = read(path, text=heads)
    config = imported.config
    case.holds("depth", config.aformer.depth == options["num_top_layer"])
    case.holds("width", config.embed_size == options["hidden_size"])
    case.holds("queue", config.queue_size == options["queue_size"])
    case.holds("captions", config.text_padding == options["text_encoder_config"]["max_text_len"])
    case.holds("pixels", config.image.size == options["image_encoder_config"]["image_size"])
    case.holds("unused", all(map(is_unused, imported.report.ignored)))
    layout = case.data["layout"]
    case.holds("epoch", f"int: {imported.info['epoch']}" == layout["epoch"])
    case.holds("updates", f"int: {imported.info['global_step']}" == layout["global_step"])
    model = _model(path, heads["heads"])
    _check_evaluation(case, model)
    with tempfile.TemporaryDirectory() as folder:  # and back again
        copy = Path(folder) / "copy.ckpt"
        torch.save(export(model, epoch=1, updates=4), copy)
        again = read(copy, text=heads)
        written = torch.load(copy, weights_only=True)["state_dict"]
    theirs = torch.load(path, weights_only=True)["state_dict"]
    case.holds("round trip: names", written.keys() == theirs.keys())
    for name, value in official_state(model).items():
        case.holds(f"round trip: {name}", torch.equal(value, theirs[name]))
        case.holds(f"written: {name}", torch.equal(value, written[name]))
    case.holds("round trip: options", again.config == config)


def _check_evaluation(case: Case, model: MultiSEA) -> None:
    batch = batch_of(case)
    with torch.no_grad():
        images, texts = model.encode_images(batch), model.encode_texts(batch)
        assert images.tokens is not None and texts.tokens is not None
        every = torch.arange(len(images.pooled))
        rows: dict[str, PairRows] = {
            "image": PairRows(images.tokens, None, every),
            "text": PairRows(texts.tokens, texts.mask, every),
        }
        found: dict[str, Tensor] = {
            "image_feats": images.pooled,
            "image_embeds": images.tokens,
            "text_feats": texts.pooled,
            "text_embeds": texts.tokens,
            "itm_logits_i2t": model.match_logits("image", rows["image"], rows["text"], True),
            "itm_logits_t2i": model.match_logits("text", rows["text"], rows["image"], True),
        }
    for name, value in found.items():
        case.check(f"out.{name}", value)


RUNNERS: dict[str, Runner] = {
    "losses_ddp": losses_ranks,
    "official_checkpoint": official_checkpoint,
    "rerank_eval": rerank_eval,
    "retrieval_metrics": metrics,
}
