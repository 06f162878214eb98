"""Opens a tokenizer with transformers and takes its whole pipeline out of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from itr.data.text.cleaners import SPACE
from itr.data.text.whole_tokenizer import SpecialIds, WholeTokenizer
from itr.errors import ConfigError
from itr.hub import local_or_hub

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
NO_LIMIT = 1 << 20  # transformers writes 1e30 for a tokenizer without a largest length


@dataclass(frozen=True)
class LibraryTokenizer:
    """A whole tokenizer, and how its library prepares texts for a model."""

    tokenizer: WholeTokenizer
    cleaner: str  # what the library does in Python before the pipeline: a name of `CLEANERS`
    max_length: int | None  # ids of a text; None: the tokenizer has no limit
    pad_left: bool
    has_mask: bool  # a mask of the padding is made; otherwise padding is attended


@functools.lru_cache(maxsize=4)  # those of 250,000 ids take seconds
def library_tokenizer(name: str, key: str = "model.tower") -> LibraryTokenizer:
    """The tokenizer of ``name``, a directory or a name on the Hugging Face hub, set by ``key``.

    Raises ConfigError if its files are missing, or of a kind without a ``tokenizer.json``.
    """
    from transformers import AutoTokenizer

    source = local_or_hub(name, key, FILES)
    try:
        opened = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ImportError as error:  # the sentence names sentencepiece or protobuf
        raise ConfigError(
            f"{key}={name}: its tokenizer needs a package that is not installed "
            f"({_line(error).partition('. ')[0]}); run pip install 'itr-suite[clip]'"
        ) from error
    except Exception as error:  # the library raises nearly anything for damaged files
        raise ConfigError(
            f"{key}={name}: no tokenizer could be opened there ({_line(error)}); expected "
            "tokenizer.json and tokenizer_config.json. Pass a directory or a name that has them"
        ) from error
    kind = type(opened).__name__
    if kind == "SiglipTokenizer":
        text, cleaner = _siglip(opened), "siglip" if opened.do_lower_case else "siglip_cased"
    elif hasattr(opened, "backend_tokenizer"):
        text, cleaner = opened.backend_tokenizer.to_str(), "none"
    else:
        raise ConfigError(
            f"{key}={name}: a {kind}, which runs in Python alone and cannot be kept in a "
            "checkpoint; expected a tokenizer with a tokenizer.json. Save one with "
            "AutoTokenizer, or choose another tower"
        )
    return LibraryTokenizer(
        WholeTokenizer(text, _special(opened), name),
        cleaner,
        int(opened.model_max_length) if opened.model_max_length < NO_LIMIT else None,
        opened.padding_side == "left",
        "attention_mask" in opened.model_input_names,
    )


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _special(opened: Any) -> SpecialIds:
    pad = opened.pad_token_id  # GPT-2's has none; its towers read the end of the text
    return SpecialIds(
        pad if pad is not None else opened.eos_token_id or 0,
        opened.unk_token_id,
        opened.mask_token_id,
        opened.sep_token_id,
    )


def _siglip(opened: Any) -> str:
    """The pipeline of a SiglipTokenizer, which runs SentencePiece, as the `tokenizers` library's.

    The space before a caption is the cleaner's (`cleaners.siglip`). Ids are the same for every
    caption, but for one in which `</s>` or `<unk>` is written out, after which the library joins
    unknown characters to that token.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers, processors
    from transformers.convert_slow_tokenizer import SpmConverter, import_protobuf

    proto = import_protobuf().ModelProto()
    with open(opened.vocab_file, "rb") as file:
        proto.ParseFromString(file.read())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    fast = SpmConverter.build_tokenizer_from_spm_proto(proto, pieces)
    characters = proto.normalizer_spec.precompiled_charsmap
    fast.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(characters)] if characters else []),
            normalizers.Replace(" ", SPACE),
            normalizers.Replace(Regex(f"{SPACE}{{2,}}"), SPACE),
            normalizers.Replace(Regex(rf"{SPACE}+\z"), ""),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    fast.add_special_tokens([token for _, token in sorted(opened.added_tokens_decoder.items())])
    end = (str(opened.eos_token), opened.eos_token_id)
    fast.post_processor = processors.TemplateProcessing(
        single=["$A", end[0]], pair=["$A", end[0], "$B", end[0]], special_tokens=[end]
    )
    return fast.to_str()
