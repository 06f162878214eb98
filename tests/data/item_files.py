"""Small data sets of questions, hypotheses, statements and expressions, in their real formats."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from tests.data.image_files import encoded, photo

LABELS = ("contradiction", "neutral", "entailment")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(photo(33, 32, seed=seed)))


def coco_file(part: str, number: int) -> str:
    return f"{part}/COCO_{part}_{number:012d}.jpg"


def votes_of(number: int) -> list[str]:
    return ["red"] * 7 + ["dark red"] * 3 if number % 2 else ["yes"] * 10


def write_vqa_lists(root: Path) -> None:
    """ALBEF's lists: two questions per picture; Visual Genome beside them."""
    for split, part, first in (
        ("train", "train2014", 1),
        ("val", "val2014", 5),
        ("test", "test2015", 8),
    ):
        rows = []
        for number in range(first, first + 3):
            write_picture(root / coco_file(part, number), number)
            for question in ("What color is it?", "Is it left of the dog?"):
                row = {"question_id": 10 * number + len(rows), "question": question}
                row |= {"image": coco_file(part, number), "dataset": "vqa"}
                rows.append(row if split == "test" else {**row, "answer": votes_of(len(rows))})
        write_json(root / f"vqa_{split}.json", rows)
    genome = {"question": "Who?", "answer": "man", "image": "image/7.jpg", "dataset": "vg"}
    write_json(root / "vg_qa.json", [{"question_id": 77, **genome}])
    write_json(root / "answer_list.json", ["yes", "red", "man", "no"])


def write_vqa_official(root: Path) -> None:
    """The official files of train and val, with pictures below ``root / coco``."""
    for part in ("train2014", "val2014"):
        questions, annotations = [], []
        for number in (1, 2) if part == "train2014" else (3,):
            write_picture(root / "coco" / coco_file(part, number), number)
            base = {"image_id": number, "question_id": 100 + number}
            questions.append({**base, "question": "What color is it?"})
            answers = [
                {"answer": text, "answer_confidence": "yes", "answer_id": place}
                for place, text in enumerate(votes_of(number), start=1)
            ]
            types = {"answer_type": "other", "question_type": "what color is"}
            annotations.append({**base, **types, "answers": answers})
        about = {"data_subtype": part, "task_type": "Open-Ended"}
        write_json(
            root / f"v2_OpenEnded_mscoco_{part}_questions.json", {**about, "questions": questions}
        )
        write_json(
            root / f"v2_mscoco_{part}_annotations.json", {**about, "annotations": annotations}
        )


def write_snli_ve(root: Path, lists: bool = False) -> None:
    """Three hypotheses per picture."""
    for split, first in (("train", 1000), ("dev", 2000), ("test", 3000)):
        rows = []
        for number in range(first, first + 2):
            write_picture(root / "flickr30k-images" / f"{number}.jpg", number)
            for label in LABELS:
                text = f"it is {label} {number}"
                row = {"image": str(number), "sentence": text, "label": label}
                if not lists:
                    row = {"Flickr30K_ID": str(number), "sentence2": text, "gold_label": label}
                    row |= {"pairID": f"{number}.jpg#{len(rows)}", "sentence1": "a caption"}
                rows.append(row)
        if lists:
            write_json(root / f"ve_{split}.json", rows)
        else:
            write_lines(root / f"snli_ve_{split}.jsonl", rows)


def write_nlvr2(root: Path, lists: bool = False) -> None:
    """Sets of two pairs of pictures with two statements."""
    for start, split, official in (
        (0, "train", "train"),
        (20, "dev", "dev"),
        (40, "test", "test1"),
    ):
        rows = []
        for pair in range(2):
            folder = "images/train/0" if split == "train" else official
            pictures = [f"{folder}/{official}-9-{pair}-img{side}.png" for side in range(2)]
            for number, picture in enumerate(pictures):
                write_picture(root / picture, start + 10 * pair + number)
            for sentence in range(2):
                text, label = f"statement {sentence} of left dogs", str((pair + sentence) % 2 == 0)
                row: dict[str, Any] = {"sentence": text, "label": label}
                if lists:
                    rows.append({**row, "images": pictures})
                    continue
                row["identifier"] = f"{official}-9-{pair}-{sentence}"
                rows.append({**row, "directory": 0} if split == "train" else row)
        if lists:
            write_json(root / f"nlvr_{split}.json", rows)
        else:
            write_lines(root / f"{official}.json", rows)


def write_refcoco(root: Path, lists: bool = True, as_pickle: bool = True) -> None:
    """One object per picture, with two expressions; two proposals per picture."""
    parts = ("train", "train", "val", "testA", "testB")
    refs, images, annotations = [], [], []
    listed: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    detections = {}
    for number, part in enumerate(parts):
        picture, name = 500 + number, f"COCO_train2014_{500 + number:012d}.jpg"
        write_picture(root / "train2014" / name, number)
        texts = [f"the left thing {number}", f"thing {number}"]
        refs.append(
            {
                "ref_id": number,
                "ann_id": 900 + number,
                "image_id": picture,
                "category_id": 1,
                "split": part,
                "sentences": [{"sent": text, "tokens": text.split()} for text in texts],
            }
        )
        images.append({"id": picture, "width": 33, "height": 32, "file_name": name})
        box = [4.5, 5, 10, 12]
        annotations.append({"id": 900 + number, "image_id": picture, "bbox": box})
        detections[str(picture)] = [[5, 5, 10, 11], [20, 20, 8, 9]]
        rows = [{"image": f"train2014/{name}", "text": text, "ref_id": number} for text in texts]
        listed["train" if part == "train" else "test"] += rows
        listed["val"] += rows if part == "val" else []
    if lists:
        for role, rows in listed.items():
            write_json(root / f"refcoco+_{role}.json", rows)
    if as_pickle:
        (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    else:
        write_json(root / "refs(unc).json", refs)
    write_json(root / "instances.json", {"images": images, "annotations": annotations})
    write_json(root / "dets.json", detections)
