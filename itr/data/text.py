"""Captions to token ids: BERT's WordPiece, ids cached once, the caption augmentation on ids."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from itr.errors import CheckpointError, ConfigError
from itr.view import CaptionAugment, TextView

log = logging.getLogger(__name__)

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLEANERS = ("none",)
KEEP, MASK, RANDOM, DELETE = range(4)  # what augmentation does to an id


@dataclass(frozen=True)
class TokenTable:
    """Token ids of C captions, one after the other; [CLS] and [SEP] included."""

    flat: np.ndarray  # [T] int32
    words: np.ndarray  # [T] int32: which basic token of its caption an id is a piece of; -1: none
    offsets: np.ndarray  # [C + 1] int64: where each caption begins

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[C] int64: number of ids of each caption."""
        return np.diff(self.offsets)

    def ids(self, index: int) -> np.ndarray:
        """The ids of one caption, int32."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def positions(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the ids of ``captions`` [B] stand in ``flat``, one after the other, and lengths."""
        lengths = self.lengths[captions]
        before = np.cumsum(lengths) - lengths
        shift = np.repeat(self.offsets[:-1][captions] - before, lengths)
        return shift + np.arange(lengths.sum()), lengths


class Tokenizer:
    """BERT's basic tokenizer, then WordPiece (words over 100 characters become [UNK]).

    Special tokens written inside a caption are ordinary text; [CLS] and [SEP] are added here.
    Raises ConfigError for a vocabulary that is not BERT's kind.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,  # None: as `lowercase`
        space_chinese: bool = True,
        source: str = "vocabulary",
    ):
        self.tokens = list(tokens)
        self.options: dict[str, Any] = {
            "lowercase": lowercase,
            "strip_accents": strip_accents,
            "space_chinese": space_chinese,
        }
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        missing = [token for token in SPECIALS if token not in vocabulary]
        if missing or vocabulary["[PAD]"] != 0:
            fault = f"lacks {', '.join(missing)}" if missing else "has [PAD] elsewhere than at 0"
            raise ConfigError(
                f"{source}: {fault}; expected a BERT vocabulary with [PAD] as its first entry"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[token] for token in SPECIALS
        )
        model = WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
        self._fast = _pipeline(model, **self.options)

    @classmethod
    def from_vocab(cls, tokens: Sequence[str], lowercase: bool = True) -> Tokenizer:
        """A tokenizer over ``tokens``; the place in the list is the id."""
        return cls(tokens, lowercase)

    @classmethod
    def from_bert(cls, name_or_dir: str) -> Tokenizer:
        """The tokenizer of a BERT in a local directory or, by name, on the Hugging Face hub.

        Raises ConfigError when it cannot be found or is not a WordPiece tokenizer.
        """
        files = _bert_files(name_or_dir)
        try:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            fast = json.loads(files.get("tokenizer.json", b"{}"))
            lines = files.get("vocab.txt", b"").decode("utf-8").rstrip("\n")
        except ValueError as error:
            raise ConfigError(
                f"{name_or_dir}: a tokenizer file cannot be read ({error})"
            ) from error
        normal, model = fast.get("normalizer") or {}, fast.get("model") or {}
        tokens = [line.rstrip("\r") for line in lines.split("\n") if lines]
        if not tokens and model.get("type") == "WordPiece":
            tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if not tokens:
            raise ConfigError(
                f"{name_or_dir}: holds neither vocab.txt nor a tokenizer.json of type WordPiece; "
                "expected a BERT"
            )
        return cls(
            tokens,
            lowercase=config.get("do_lower_case", normal.get("lowercase", True)),
            strip_accents=config.get("strip_accents", normal.get("strip_accents")),
            space_chinese=config.get(
                "tokenize_chinese_chars", normal.get("handle_chinese_chars", True)
            ),
            source=name_or_dir,
        )

    @classmethod
    def from_captions(cls, captions: Iterable[str], size: int) -> Tokenizer:
        """A WordPiece vocabulary of at most ``size`` entries learnt from ``captions``.

        The same captions give the same vocabulary, in whatever order they come.
        """
        captions = list(captions)
        fast = _pipeline(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        characters = fast.normalizer.normalize_str("".join(sorted(set("".join(captions)))))
        # The trainer numbers continuations as its hash map yields them and breaks ties by number:
        # numbered here, all runs agree. "a" + c stays one token if c can continue a word.
        continuations = [
            f"##{character}"
            for character in sorted(set(characters))
            if len(fast.pre_tokenizer.pre_tokenize_str(f"a{character}")) == 1
            and not character.isspace()
        ]
        trainer = WordPieceTrainer(
            vocab_size=size, special_tokens=[*SPECIALS, *continuations], show_progress=False
        )
        fast.train_from_iterator(captions, trainer, length=len(captions))
        vocabulary = fast.get_vocab()
        if len(vocabulary) > size:
            raise ConfigError(
                f"vocabulary_size={size}: the captions' characters alone need {len(vocabulary)}; "
                "type a larger one"
            )
        return cls(sorted(vocabulary, key=vocabulary.__getitem__))

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    def to_json(self) -> str:
        """All there is to know, for a checkpoint."""
        return json.dumps({"format": 1, "options": self.options, "tokens": self.tokens})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote; raises CheckpointError if it is damaged."""
        try:
            values = json.loads(text)
            return cls(values["tokens"], **values["options"])
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"the tokenizer in the checkpoint is damaged: {error}") from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def tokenize(self, captions: Sequence[str], view: TextView) -> TokenTable:
        """Ids of ``captions``, each [CLS] ... [SEP]; cut only where ``view.max_length`` asks.

        Raises ConfigError for an unknown ``view.cleaner``.
        """
        if view.cleaner not in CLEANERS:
            raise ConfigError(
                f"text cleaner '{view.cleaner}': unknown (known: {', '.join(CLEANERS)})"
            )
        if view.max_length is not None and view.max_length < 2:
            raise ConfigError(f"max_length={view.max_length}: [CLS] and [SEP] alone are 2 ids")
        room = None if view.max_length is None else view.max_length - 2
        # Said here, the library does not warn when a data loader forks its workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        encoded = self._fast.encode_batch(
            [view.prompt + caption for caption in captions], add_special_tokens=False
        )
        ids, words = [], []
        offsets = np.zeros(len(captions) + 1, dtype=np.int64)
        for number, encoding in enumerate(encoded):
            pieces = encoding.ids[:room]
            ids += [self.cls_id, *pieces, self.sep_id]
            words += [-1, *encoding.word_ids[:room], -1]
            offsets[number + 1] = offsets[number] + len(pieces) + 2
        return TokenTable(np.array(ids, np.int32), np.array(words, np.int32), offsets)


def _pipeline(
    model: WordPiece,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    space_chinese: bool = True,
) -> Any:
    fast = FastTokenizer(model)
    fast.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=space_chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    fast.pre_tokenizer = BertPreTokenizer()
    return fast


def _bert_files(name_or_dir: str) -> dict[str, bytes]:
    """The tokenizer files of a BERT: name -> content, for those that there are."""
    names = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
    folder = Path(name_or_dir).expanduser()
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found, offline, fault = {}, False, ""
    for name in names:
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
            f"BERT '{name_or_dir}': not a directory, and the hub gave nothing ({fault}). Give a "
            "directory that holds vocab.txt, or type model.pretrained=false for a tokenizer built "
            "from the captions"
        )
    return found


# The cache


def build_table(
    tokenizer: Tokenizer,
    captions: Sequence[str],
    view: TextView,
    cache_dir: str | Path | None = None,
) -> TokenTable:
    """`Tokenizer.tokenize`, kept in ``cache_dir`` for the next run; a damaged file is rebuilt."""
    if cache_dir is None:
        return tokenizer.tokenize(captions, view)
    key = hashlib.sha256(
        json.dumps([1, tokenizer.fingerprint, view.cleaner, view.prompt, view.max_length]).encode()
    )
    key.update(json.dumps(list(captions)).encode())
    path = Path(cache_dir) / f"tokens-{key.hexdigest()[:32]}.npz"
    table = _read_table(path, len(captions))
    if table is None:
        table = tokenizer.tokenize(captions, view)
        _write_table(path, table)
    return table


def _read_table(path: Path, n_captions: int) -> TokenTable | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            table = TokenTable(file["flat"], file["words"], file["offsets"])
        if len(table) == n_captions and len(table.flat) == len(table.words) == table.offsets[-1]:
            return table
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    log.warning("%s: damaged; made again", path)
    return None


def _write_table(path: Path, table: TokenTable) -> None:
    """Written under a temporary name, then renamed: two jobs may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, flat=table.flat, words=table.words, offsets=table.offsets)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        log.warning("%s: token ids are not kept (%s)", path, error)


# Augmentation. T ids of any number of captions, W basic tokens


def fates(words: np.ndarray, uniforms: np.ndarray, rule: CaptionAugment) -> np.ndarray:
    """KEEP, MASK, RANDOM or DELETE for each id, int8 [T].

    ``words`` [T] numbers the basic token of each id (-1: a special one, kept), ``uniforms`` [W]
    holds one draw in [0, 1) for each basic token.
    """
    share = uniforms / rule.probability if rule.probability > 0 else np.full_like(uniforms, np.inf)
    fate = np.where(
        share < rule.mask, MASK, np.where(share < rule.mask + rule.random, RANDOM, DELETE)
    )
    fate = np.append(np.where(uniforms < rule.probability, fate, KEEP), KEEP)
    return fate[words].astype(np.int8)  # -1 reads the KEEP that was appended


def augment(
    ids: np.ndarray,
    words: np.ndarray,
    rule: CaptionAugment,
    uniforms: np.ndarray,
    replacements: np.ndarray,
    mask_id: int,
) -> np.ndarray:
    """``ids`` [T] after augmentation: pieces masked, replaced or left out, word by word.

    ``replacements`` holds the new ids of the replaced pieces, in order; ``words``, ``uniforms`` as
    for `fates`. Everything may be deleted; [CLS] and [SEP] stay.
    """
    fate = fates(words, uniforms, rule)
    changed = np.where(fate == MASK, mask_id, ids)
    changed[fate == RANDOM] = replacements
    return changed[fate != DELETE]
