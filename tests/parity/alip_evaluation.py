"""Golden cases of ALIP's zero-shot retrieval: ranks from scores, and all the way from files."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.records import Split
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.encode import Encoder
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.metrics import retrieval_metrics as metrics_of
from itr.evaluation.ranks import Ranks, rank_embeddings, rank_scores
from itr.evaluation.zeroshot import accuracies, class_embeddings, class_logits, predictions
from itr.jobs.eval.classify import encode_prompts
from itr.jobs.load_checkpoint import LoadedCheckpoint
from tests.parity.alip_build import load_official, model_of
from tests.parity.harness import Case, Runner
from tests.parity.pixel_data_cases import padded


def retrieval_metrics(case: Case) -> None:
    for name, expected in case.data["results"].items():
        scores = case[f"in.{name}.scores"]
        text_to_image = case[f"in.{name}.text_to_image"].numpy()
        worst = rank_scores(scores, text_to_image, "pessimistic")
        best = rank_scores(scores, text_to_image, "optimistic")
        for way, (low, high) in {
            "image_to_text": (best.i2t, worst.i2t),
            "text_to_image": (best.t2i, worst.t2i),
        }.items():
            key = f"out.{name}.rank_{way}"
            theirs = case[key].numpy() + 1
            if "tie_rule_observed" in expected:  # any rank inside a tie
                case.account_for(key)
                case.holds(
                    f"{key}: outside a tie", bool(((low <= theirs) & (theirs <= high)).all())
                )
            else:
                case.check(key, worst.i2t - 1 if way == "image_to_text" else worst.t2i - 1)
        if "tie_rule_observed" not in expected:
            _check_recalls(case, name, expected, worst)


def _check_recalls(case: Case, name: str, expected: Mapping[str, Any], ranks: Ranks) -> None:
    found = metrics_of(ranks)
    for way, ours in (("text_retrieval_i2t", "i2t"), ("image_retrieval_t2i", "t2i")):
        for key in ("r1", "r5", "r10"):
            case.equal(f"{name}.{way}.{key}", found[f"{ours}_{key}"], expected[way][key])
    if "rsum" in expected:
        case.equal(f"{name}.rsum", found["rsum"], expected["rsum"])


def retrieval_e2e(case: Case) -> None:
    whole = Case(case.path.with_name(f"{case.data['state_from']}.json"))
    model = model_of(case).eval()
    load_official(model, whole.below("state."))
    tokenizer = Tokenizer.from_files("open_clip")
    view = model.view_for(dataclasses.replace(model.config, prompt=case.data["prompt_prefix"]))
    length = case.data["tower_config"]["text_cfg"]["context_length"]
    for name, expected in case.data["data"].items():
        with tempfile.TemporaryDirectory() as folder:
            split = _on_disk(case, Path(folder), name)
            tokens = tokenizer.tokenize(split.captions(), view.text_eval)
            images, texts = Evaluator(split, view, tokens).encode(model)
        full = dataclasses.replace(view.text_eval, pad_to=length)
        case.check(f"out.{name}.ids", padded(tokenizer, split.captions(), full)["tokens"])
        case.check(f"out.{name}.image_features", images)
        case.check(f"out.{name}.text_features", texts)
        case.check(f"out.{name}.scores", images @ texts.t())
        ranks = rank_embeddings(images, texts, split.text_to_image)
        case.check(f"out.{name}.rank_image_to_text", ranks.i2t - 1)
        case.check(f"out.{name}.rank_text_to_image", ranks.t2i - 1)
        _check_recalls(case, name, expected, ranks)


def _on_disk(case: Case, folder: Path, name: str) -> Split:
    """The toy set in Karpathy's layout, read back with the authors' decoder and resize."""
    images = []
    for number, record in enumerate(case.data["data"][name]["annotations"]):
        file = f"{record['image']}.png"
        (folder / file).write_bytes(case[f"in.{name}.{record['image']}"].numpy().tobytes())
        sentences = [{"raw": caption} for caption in record["caption"]]
        images.append({"filename": file, "split": "test", "sentences": sentences, "imgid": number})
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    data = DataConfig(name=name, root=str(folder), decoder="pillow")
    return open_split(data, "test", "pixels")


def zeroshot(case: Case) -> None:
    whole = Case(case.path.with_name(f"{case.data['state_from']}.json"))
    model = model_of(case).eval()
    load_official(model, whole.below("state."))
    loaded = LoadedCheckpoint(model, Tokenizer.from_files("open_clip"), case.path, None, {})
    encoder = Encoder(model, torch.device("cpu"))
    names = case.data["class_names"]
    classifier = class_embeddings(
        lambda texts: encode_prompts(loaded, encoder, texts, 64), names, case.data["templates"]
    )
    case.check("out.classifier", classifier.t())
    batch = Batch(image_id=torch.arange(len(case["in.image"])), pixels=case["in.image"])
    images = encoder.images([batch], len(batch), "images").pooled
    case.check("out.image_features", images)
    # The scale of 100 multiplies the towers' own rounding (2.7e-5 from the authors' logits), so the
    # logits are made from the authors' features; ours were compared with those above.
    logits = class_logits(case["out.image_features"], case["out.classifier"].t())
    case.check("out.logits_float", logits)
    case.equal(
        "predictions from ours",
        predictions(class_logits(images, classifier)),
        case["out.pred_float"],
    )
    case.check("out.logits_int", logits.long())
    _check_accuracies(case, "out.", logits, case["in.target"])
    near = class_logits(case["in.trunc.image_features"], case["in.trunc.classifier"].t())
    case.check("out.trunc.logits_int", near.long())
    top = near.long().amax(dim=1, keepdim=True)
    case.check("out.trunc.n_tied", (near.long() == top).sum(dim=1))
    _check_accuracies(case, "out.trunc.", near, case["in.trunc.target"])
    logits, targets = case["in.metric_logits"], case["in.metric_target"]
    found = accuracies(predictions(logits), targets, logits.shape[1])
    for name, value in found.items():
        case.check(f"out.metric_{name}", value / 100)


def _check_accuracies(case: Case, below: str, logits: Tensor, targets: Tensor) -> None:
    """Of whole logits, and of logits without their fraction, as published."""
    for kind, truncate in (("float", False), ("int", True)):
        predicted = predictions(logits, truncate)
        case.check(f"{below}pred_{kind}", predicted)
        for name, value in accuracies(predicted, targets, logits.shape[1]).items():
            case.check(f"{below}{name}_{kind}", value)


RUNNERS: dict[str, Runner] = {
    "zeroshot": zeroshot,
    "retrieval_e2e": retrieval_e2e,
    "retrieval_metrics": retrieval_metrics,
}
