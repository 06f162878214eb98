"""Where a published tokenizer's files are, and which kind they tell."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

from itr.data.text.tokenizer_backends import STYLE_SPECIALS, WORD_END
from itr.errors import ConfigError

NAMES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"  # OpenAI's own form
CLIP_MERGES = 49152 - 256 - 2  # of its lines, the first of which is a title
CLIP_PACKAGE = "open_clip"  # the package open_clip_torch ships the file


class WordPieceFiles(NamedTuple):
    """A BERT's: tokens by id, and the options of `pipelines.wordpiece`."""

    tokens: list[str]
    options: dict[str, Any]


class BytePairFiles(NamedTuple):
    """A CLIP's or RoBERTa's: tokens by id, merges in order of rank, ``clip`` or ``roberta``."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    style: str


def read_files(name_or_dir: str) -> WordPieceFiles | BytePairFiles:
    """The vocabulary in a local directory or file or, by name, on the Hugging Face hub.

    The name ``open_clip`` is that of the installed package, which ships CLIP's. Raises ConfigError
    when nothing is found or the files cannot be used.
    """
    if name_or_dir == CLIP_PACKAGE:
        return _openai_clip(_packaged())
    place = Path(name_or_dir).expanduser()
    if (place / CLIP_FILE).is_file() or place.name == CLIP_FILE:
        return _openai_clip(place if place.name == CLIP_FILE else place / CLIP_FILE)
    files = _contents(name_or_dir, place)
    try:
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        fast = json.loads(files.get("tokenizer.json", b"{}"))
        lines = files.get("vocab.txt", b"").decode("utf-8").rstrip("\n")
        pairs = json.loads(files.get("vocab.json", b"{}"))
        ranked = files.get("merges.txt", b"").decode("utf-8").split("\n")
    except ValueError as error:
        raise ConfigError(f"{name_or_dir}: a tokenizer file cannot be read ({error})") from error
    model = fast.get("model") or {}
    if lines or model.get("type") == "WordPiece":
        return _wordpiece(lines, config, model, fast.get("normalizer") or {})
    merges = [line for line in ranked if line and not line.startswith("#version")]
    if model.get("type") == "BPE":
        pairs, merges = model["vocab"], model["merges"]
        pairs |= {token["content"]: token["id"] for token in fast.get("added_tokens", ())}
    if pairs and merges:
        return _byte_pairs(name_or_dir, pairs, merges)
    raise ConfigError(
        f"{name_or_dir}: holds neither vocab.txt nor a tokenizer.json of type WordPiece (a BERT), "
        f"nor vocab.json with merges.txt or a tokenizer.json of type BPE (a RoBERTa or CLIP), nor "
        f"{CLIP_FILE} (OpenAI's CLIP)"
    )


def _wordpiece(
    lines: str, config: dict[str, Any], model: dict[str, Any], normal: dict[str, Any]
) -> WordPieceFiles:
    tokens = [line.rstrip("\r") for line in lines.split("\n") if lines]
    if not tokens:
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    options = {
        "lowercase": config.get("do_lower_case", normal.get("lowercase", True)),
        "strip_accents": config.get("strip_accents", normal.get("strip_accents")),
        "space_chinese": config.get(
            "tokenize_chinese_chars", normal.get("handle_chinese_chars", True)
        ),
    }
    return WordPieceFiles(tokens, options)


def _byte_pairs(source: str, vocabulary: dict[str, int], merges: list[Any]) -> BytePairFiles:
    style = "clip" if any(token.endswith(WORD_END) for token in vocabulary) else "roberta"
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ConfigError(f"{source}: its ids leave gaps or repeat; the vocabulary is damaged")
    if style == "clip":  # OpenAI and open_clip name the last two differently
        tokens[-2:] = STYLE_SPECIALS["clip"]
    split = [m.split(" ") if isinstance(m, str) else m for m in merges]
    if any(len(merge) != 2 for merge in split):
        raise ConfigError(f"{source}: holds merges that are not of two; the file is damaged")
    return BytePairFiles(tokens, [(first, last) for first, last in split], style)


def _openai_clip(path: Path) -> BytePairFiles:
    """The merges of ``path``; the tokens follow from them: bytes, bytes that end a word, merges."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy or download it again") from error
    split = [line.split() for line in lines[1 : 1 + CLIP_MERGES]]
    if len(split) < CLIP_MERGES or any(len(merge) != 2 for merge in split):
        raise ConfigError(f"{path}: expected {CLIP_MERGES} merges of two; found other lines")
    merges = [(first, last) for first, last in split]
    letters = _byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [first + last for first, last in merges]
    return BytePairFiles([*tokens, *STYLE_SPECIALS["clip"]], merges, "clip")


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in CLIP's order: printable bytes first.

    Source: Radford et al., GPT-2; bytes that do not print are shifted beyond 255.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _packaged() -> Path:
    found = importlib.util.find_spec(CLIP_PACKAGE)
    path = Path(found.origin).parent / CLIP_FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise ConfigError(
            f"tokenizer {CLIP_PACKAGE}: the package is not installed; type pip install "
            f"open_clip_torch, or name a directory that holds {CLIP_FILE}"
        )
    return path


def _contents(name_or_dir: str, folder: Path) -> dict[str, bytes]:
    """The tokenizer files that there are: name -> content."""
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found, offline, fault = {}, False, ""
    for name in NAMES:
        try:
            path = hf_hub_download(name_or_dir, name, local_files_only=offline)
            found[name] = Path(path).read_bytes()
        except LocalEntryNotFoundError as error:  # no network, and not in the cache
            offline, fault = True, str(error).splitlines()[0]
        except EntryNotFoundError:
            pass  # the repository has no such file
        except (OSError, ValueError) as error:  # no such repository, not a name
            fault = str(error).splitlines()[0]
            break
    if not found:
        raise ConfigError(
            f"tokenizer '{name_or_dir}': not a directory, and the hub gave nothing ({fault}). Give "
            f"a directory that holds its files ({', '.join(NAMES)} or {CLIP_FILE}), {CLIP_PACKAGE} "
            "for CLIP's in that package; to train from random weights with a tokenizer built from "
            "the captions, type model.pretrained=false and model.text.tokenizer=wordpiece (in a "
            "CLIP's place clip-from-captions, in a RoBERTa's roberta-from-captions)"
        )
    return found
