"""The caption augmentation, on token ids. T ids of any number of captions, W basic tokens."""

from __future__ import annotations

import numpy as np

from itr.view import CaptionAugment

KEEP, MASK, RANDOM, DELETE = range(4)  # what happens to an id


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
