"""Reads the vocabulary files of published tokenizers and detects their kind."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from itr.data.text.tokenizer_backends import STYLE_SPECIALS, WORD_END
from itr.errors import ConfigError
from itr.files import parse_json
from itr.hub import local_or_hub

NAMES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"  # the format of OpenAI's CLIP repository
CLIP_MERGES = 49152 - 256 - 2  # lines to read, after a header line
CLIP_BYTES = 16 << 20  # of that file, unpacked; CLIP's has 3 MB
CLIP_PACKAGE = "open_clip"  # module of the package open_clip_torch, which contains the file

REMEDY = (
    f"pass {CLIP_PACKAGE} for the CLIP vocabulary of that package, or model.pretrained=false with "
    "model.text.tokenizer=wordpiece (clip-from-captions, roberta-from-captions) for random weights "
    "and a tokenizer learned from the captions"
)


class WordPieceFiles(NamedTuple):
    """A BERT: tokens by id, and options for `tokenizer_backends.wordpiece`."""

    tokens: list[str]
    options: dict[str, Any]


class BytePairFiles(NamedTuple):
    """A CLIP or RoBERTa: tokens by id, merges by rank, and style ``clip`` or ``roberta``."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    style: str


def read_tokenizer_files(name_or_dir: str, download: bool = True) -> WordPieceFiles | BytePairFiles:
    """The vocabulary in a local directory or file, or of a name on the Hugging Face hub.

    Without ``download`` a name is only looked up in the hub's cache on this machine. ``open_clip``
    is CLIP's vocabulary in the installed package open_clip_torch. Raises ConfigError if the files
    are missing or unusable.
    """
    if name_or_dir == CLIP_PACKAGE:
        return _openai_clip(_packaged())
    path = Path(name_or_dir).expanduser()
    if (path / CLIP_FILE).is_file() or path.name == CLIP_FILE:
        return _openai_clip(path if path.name == CLIP_FILE else path / CLIP_FILE)
    files = _contents(name_or_dir, path, download)
    try:
        return _parse(name_or_dir, files)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{name_or_dir}: a tokenizer file is damaged, or of another form "
            f"({type(error).__name__}: {error}); copy or download it again"
        ) from error


def _parse(name_or_dir: str, files: dict[str, bytes]) -> WordPieceFiles | BytePairFiles:
    """The vocabulary in the contents of a tokenizer's files. Raises as `read_tokenizer_files`."""
    try:
        config = parse_json(files.get("tokenizer_config.json", b"{}"))
        fast = parse_json(files.get("tokenizer.json", b"{}"))
        lines = files.get("vocab.txt", b"").decode("utf-8").rstrip("\n")
        pairs = parse_json(files.get("vocab.json", b"{}"))
        ranked = files.get("merges.txt", b"").decode("utf-8").split("\n")
    except ValueError as error:
        raise ConfigError(f"{name_or_dir}: a tokenizer file cannot be read ({error})") from error
    model = fast.get("model") or {}
    if lines or model.get("type") == "WordPiece":
        return _wordpiece(name_or_dir, lines, config, model, fast.get("normalizer") or {})
    merges = [line for line in ranked if line and not line.startswith("#version")]
    if model.get("type") == "BPE":
        pairs, merges = model["vocab"], model["merges"]
        pairs |= {token["content"]: token["id"] for token in fast.get("added_tokens", ())}
    if pairs and merges:
        return _byte_pairs(name_or_dir, pairs, merges)
    raise ConfigError(
        f"{name_or_dir}: contains no known tokenizer; expected vocab.txt or a tokenizer.json of "
        "type WordPiece (BERT), vocab.json with merges.txt or a tokenizer.json of type BPE "
        f"(RoBERTa or CLIP), or {CLIP_FILE} (OpenAI's CLIP)"
    )


def _wordpiece(
    source: str,
    lines: str,
    config: dict[str, Any],
    model: dict[str, Any],
    normal: dict[str, Any],
) -> WordPieceFiles:
    tokens = [line.rstrip("\r") for line in lines.split("\n") if lines]
    if not tokens:
        tokens = _in_order(source, model["vocab"])
    options = {
        "lowercase": config.get("do_lower_case", normal.get("lowercase", True)),
        "strip_accents": config.get("strip_accents", normal.get("strip_accents")),
        "space_chinese": config.get(
            "tokenize_chinese_chars", normal.get("handle_chinese_chars", True)
        ),
    }
    return WordPieceFiles(tokens, options)


def _in_order(source: str, vocabulary: dict[str, int]) -> list[str]:
    """The tokens of a vocabulary by id. Raises ConfigError unless the ids are 0, 1, 2, ..."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ConfigError(
            f"{source}: damaged vocabulary, its ids have gaps or duplicates; download it again"
        )
    return tokens


def _byte_pairs(source: str, vocabulary: dict[str, int], merges: list[Any]) -> BytePairFiles:
    style = "clip" if any(token.endswith(WORD_END) for token in vocabulary) else "roberta"
    tokens = _in_order(source, vocabulary)
    if style == "clip":  # OpenAI and open_clip use different names for these two
        tokens[-2:] = STYLE_SPECIALS["clip"]
    split = [m.split(" ") if isinstance(m, str) else m for m in merges]
    if any(len(merge) != 2 for merge in split):
        raise ConfigError(
            f"{source}: damaged merges, expected two tokens each; download them again"
        )
    return BytePairFiles(tokens, [(first, last) for first, last in split], style)


def _openai_clip(path: Path) -> BytePairFiles:
    """Merges of ``path``, and the tokens that follow from them: bytes, word-final bytes, merges."""
    try:
        with gzip.open(path) as file:
            lines = file.read(CLIP_BYTES).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy or download it again") from error
    split = [line.split() for line in lines[1 : 1 + CLIP_MERGES]]
    if len(split) < CLIP_MERGES or any(len(merge) != 2 for merge in split):
        raise ConfigError(f"{path}: expected {CLIP_MERGES} lines of two tokens; download it again")
    merges = [(first, last) for first, last in split]
    letters = byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [first + last for first, last in merges]
    return BytePairFiles([*tokens, *STYLE_SPECIALS["clip"]], merges, "clip")


def byte_letters() -> dict[str, int]:
    """The character that represents each byte -> the byte, in CLIP's order: printable ones first.

    Source: GPT-2 (Radford et al., 2019); other bytes are mapped to characters above 255.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    return dict(zip(letters, printable + others, strict=True))


def _packaged() -> Path:
    spec = importlib.util.find_spec(CLIP_PACKAGE)
    path = Path(spec.origin).parent / CLIP_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError(
            f"tokenizer {CLIP_PACKAGE}: the package is not installed; run 'pip install "
            f"open_clip_torch', or pass a directory that contains {CLIP_FILE}"
        )
    return path


def _contents(name_or_dir: str, folder: Path, download: bool) -> dict[str, bytes]:
    """The existing tokenizer files of a directory or hub repository: name -> content."""
    if not folder.is_dir():
        folder = Path(_local_or_hub(name_or_dir, download))
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    contents, reason = {}, ""
    for name in NAMES:
        try:
            contents[name] = Path(hf_hub_download(name_or_dir, name)).read_bytes()
        except EntryNotFoundError:
            pass  # the repository has no such file
        except (OSError, ValueError) as error:  # no such repository, or no connection
            reason = f" ({str(error).splitlines()[0]})"
            break
    if not contents:
        raise ConfigError(
            f"model.text.tokenizer={name_or_dir}: the hub has no tokenizer of this name{reason}; "
            f"{REMEDY}"
        )
    return contents


def _local_or_hub(name: str, download: bool) -> str:
    try:
        return local_or_hub(name, "model.text.tokenizer", NAMES, download)
    except ConfigError as error:
        raise ConfigError(f"{error}, or {REMEDY}") from error
