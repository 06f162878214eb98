"""A checkpoint's tokenizer as the files that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itr.data.text.tokenizer import BytePairTokenizer, Tokenizer
from itr.data.text.whole_tokenizer import WholeTokenizer
from itr.errors import CheckpointError, ConfigError
from itr.hub import local_or_hub
from itr.nn.tower.architecture import Architecture

KEY = "model.tower"
IN_PYTHON = ("siglip", "siglip_cased")  # cleaners that the library runs outside its pipeline
CLIP_SPECIALS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def write_tokenizer(tokenizer: Tokenizer, architecture: Architecture, folder: Path) -> list[str]:
    """Write ``tokenizer``, as a tower of ``architecture`` reads texts, to ``folder``.

    Returns what differs there. Raises CheckpointError for one that only its own files hold, if
    these are not on this machine.
    """
    view = architecture.text_view()
    inputs = ["input_ids", *(["attention_mask"] if architecture.has_mask else [])]
    options = {
        "model_max_length": view.max_length,
        "padding_side": "left" if view.pad_left else "right",
        "model_input_names": inputs,
    }
    notes: list[str] = []
    if view.cleaner in IN_PYTHON:
        opened = _from_its_files(architecture)
    elif isinstance(tokenizer, WholeTokenizer):
        opened = _generic(tokenizer, options)
    elif isinstance(tokenizer, BytePairTokenizer) and tokenizer.style == "clip":
        opened = _clip(tokenizer, options)
        notes.append(
            "texts with HTML entities or broken Unicode: CLIP's cleaning in this suite repairs "
            "them, the library's tokenizer does not"
        )
    else:
        raise CheckpointError(
            f"a {type(tokenizer).__name__} is no tokenizer of the towers of model=clip; expected "
            "the one of its tower. Export another run"
        )
    opened.save_pretrained(folder)
    return notes


def _from_its_files(architecture: Architecture) -> Any:
    from transformers import AutoTokenizer

    try:
        source = local_or_hub(architecture.tokenizer, KEY, ("spiece.model",), download=False)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (ConfigError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{KEY}={architecture.tokenizer}: its tokenizer cleans texts in Python, which a "
            f"checkpoint does not hold; expected its own files on this machine ({error}). Put them "
            "back"
        ) from error


def _generic(tokenizer: WholeTokenizer, options: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    fast = FastTokenizer.from_str(tokenizer.pipeline())
    special = tokenizer.special
    ids = {"pad": special.pad, "unk": special.unk, "mask": special.mask, "sep": special.sep}
    named = {
        f"{name}_token": token
        for name, number in ids.items()
        if number is not None and (token := fast.id_to_token(number)) is not None
    }
    return PreTrainedTokenizerFast(tokenizer_object=fast, **named, **options)


def _clip(tokenizer: BytePairTokenizer, options: dict[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    tokens = [CLIP_SPECIALS.get(token, token) for token in tokenizer.tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges: Any = tokenizer.merges  # pairs, whatever the library's annotation says
    padding = {"pad_token": tokens[tokenizer.pad_id]}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, **padding, **options)
