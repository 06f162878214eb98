"""Opens the tokenizer that a view names, or that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable

from itr.data.text.library_tokenizer import library_tokenizer
from itr.data.text.tokenizer import BytePairTokenizer, Tokenizer, get_cleaner
from itr.data.text.whole_tokenizer import WholeTokenizer
from itr.errors import CheckpointError
from itr.files import parse_json
from itr.view import View

FROM_CAPTIONS = {"clip-from-captions": "clip", "roberta-from-captions": "roberta"}
LEARNED = ("wordpiece", *FROM_CAPTIONS)  # from the training captions


def open_tokenizer(view: View, captions: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``view.tokenizer`` names.

    ``captions`` (of the training split) are consumed only by tokenizers that learn from them.
    Raises ConfigError if its files are missing or unusable.
    """
    if view.whole_tokenizer:
        return library_tokenizer(view.tokenizer).tokenizer
    if view.tokenizer not in LEARNED:
        return Tokenizer.from_files(view.tokenizer)
    clean = get_cleaner(view.text)
    captions = [clean(caption) for caption in captions]
    if style := FROM_CAPTIONS.get(view.tokenizer):
        return BytePairTokenizer.learn(captions, view.vocabulary_size, style)
    return Tokenizer.from_captions(captions, view.vocabulary_size)


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer of a `Tokenizer.to_json`; raises CheckpointError if the text is damaged."""
    try:
        values = parse_json(text)
        if "whole" in values:
            return WholeTokenizer.unpack(values)
        if "merges" in values:
            return BytePairTokenizer(values["tokens"], values["merges"], values["style"])
        return Tokenizer(values["tokens"], **values["options"])
    except Exception as error:  # the library in Rust raises plain Exceptions
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the tokenizer in the checkpoint is damaged ({reason})") from error
