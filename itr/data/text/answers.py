"""Token ids of answers (VQA): the target sequences of an answer decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.view import TextView

PLAIN = TextView(end=False)


def tokenize_answers(tokenizer: Tokenizer, answers: Sequence[str]) -> TokenTable:
    """Ids of ``answers``, each [CLS] ... [SEP]; neither cleaned nor truncated.

    As in ALBEF's code, and unlike in a caption, a special token that is written inside an answer
    is one.
    """
    special = {
        tokenizer.tokens[number]: number
        for number in (
            tokenizer.pad_id,
            tokenizer.unk_id,
            tokenizer.cls_id,
            tokenizer.sep_id,
            tokenizer.mask_id,
        )
        if number is not None
    }
    pattern = re.compile(f"({'|'.join(map(re.escape, special))})")
    parts = [pattern.split(answer) for answer in answers]  # odd parts are special tokens
    table = tokenizer.tokenize([text for split in parts for text in split[::2]], PLAIN)
    ids: list[np.ndarray] = []
    row = 0
    for split in parts:
        pieces = [np.array([tokenizer.cls_id])]
        for number, text in enumerate(split):
            if number % 2:
                pieces.append(np.array([special[text]]))
            else:
                pieces.append(table.ids(row)[1:])
                row += 1
        ids.append(np.concatenate([*pieces, [tokenizer.sep_id]]).astype(np.int32))
    offsets = np.concatenate([[0], np.cumsum([len(answer) for answer in ids])]).astype(np.int64)
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    return TokenTable(flat, np.full(len(flat), -1, np.int32), offsets, pad=tokenizer.pad_id)
