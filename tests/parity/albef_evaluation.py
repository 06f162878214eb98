"""Golden cases of ALBEF's evaluation: two stages, and the metrics alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.ranks import Ranks, count_ranks, match_both_ways, rank_table
from itr.evaluation.rerank import RerankConfig, rerank
from itr.evaluation.shortlists import Shortlist, ShortlistTable
from itr.view import TextView
from tests.parity.albef_build import batch_of, model_of
from tests.parity.harness import Case

FILL = -100.0  # the authors' score of what was not re-ranked


def padded(tokenizer: Tokenizer, captions: list[str], view: TextView) -> tuple[Tensor, Tensor]:
    """Ids and mask of ``captions``, as long as the longest or ``view.pad_to``."""
    table = tokenizer.tokenize(captions, view)
    rows = [torch.from_numpy(table.ids(i)).long() for i in range(len(table))]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if view.pad_to:
        ids = nn.functional.pad(ids, (0, view.pad_to - ids.shape[1]))
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(table.lengths)[:, None]
    return ids, mask


def evaluation(case: Case) -> None:
    hyper, model = case.data["hyper"], model_of(case).eval()
    captions = [caption for image in case.data["raw_captions"] for caption in image]
    length = hyper["max_length"]
    view = TextView(cleaner="albef", end=False, max_length=length, pad_to=length)
    ids, mask = padded(Tokenizer.from_vocab(case.data["vocab"]), captions, view)
    case.check("out.text_ids", ids)
    case.check("out.text_mask", mask.long())
    with torch.inference_mode():
        batch = batch_of(case["in.image"], ids, mask, None)
        images, texts = model.encode_images(batch), model.encode_texts(batch)
        case.check("out.image_feat", images.pooled)
        case.check("out.text_feat", texts.pooled)
        case.check("out.sims", images.pooled @ texts.pooled.t())
        config = RerankConfig(k=hyper["k_test"], batch_size=37)
        i2t, t2i = rerank(model, images, texts, config)
    for name, found, columns in (("i2t", i2t, len(captions)), ("t2i", t2i, len(images.pooled))):
        case.check(f"out.topk_{name}", found.candidates)
        scores = torch.full((len(found.candidates), columns), FILL)
        case.check(f"out.scores_{name}", scores.scatter(1, found.candidates, found.scores))
    counts = torch.tensor([len(image) for image in case.data["raw_captions"]])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    case.check("out.txt2img", owner)
    _check_metrics(case, "out.", rank_table(ShortlistTable(i2t, t2i), owner))


def metrics(case: Case) -> None:
    """By both of our ways to count: matrices of scores, and shortlists of everything."""
    for name in sorted({key.split(".")[0] for key in case.below("in.")}):
        scores = {way: case[f"in.{name}.scores_{way}"] for way in ("i2t", "t2i")}
        owner = case[f"in.{name}.txt2img"]
        images, texts = scores["i2t"].shape
        forward, backward = match_both_ways(owner, images, texts, "cpu")
        i2t, t2i = scores["i2t"], scores["t2i"]
        counted = Ranks(
            count_ranks(lambda a, b, s=i2t: s[a:b], texts, forward, "pessimistic", 1000),
            count_ranks(lambda a, b, s=t2i: s[a:b], images, backward, "pessimistic", 1000),
        )
        lists = [
            Shortlist(torch.arange(value.shape[1]).expand_as(value), value) for value in (i2t, t2i)
        ]
        listed = rank_table(ShortlistTable(*lists), owner)
        case.equal(f"{name} i2t", listed.i2t, counted.i2t)
        case.equal(f"{name} t2i", listed.t2i, counted.t2i)
        _check_metrics(case, f"out.{name}.", counted)


def _check_metrics(case: Case, prefix: str, ranks: Ranks) -> None:
    """Ours by the authors' names: txt is image to text."""
    found = retrieval_metrics(ranks)
    means = []
    for theirs, ours in (("txt", "i2t"), ("img", "t2i")):
        recalls = [found[f"{ours}_r{k}"] for k in (1, 5, 10)]
        for k, recall in zip((1, 5, 10), recalls, strict=True):
            case.check(f"{prefix}metric_{theirs}_r{k}", recall)
        means.append(sum(recalls) / 3)
        case.check(f"{prefix}metric_{theirs}_r_mean", means[-1])
    case.check(f"{prefix}metric_r_mean", sum(means) / 2)
