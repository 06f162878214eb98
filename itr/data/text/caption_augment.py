"""Caption augmentation on token ids. T ids of any number of captions, W words."""

from __future__ import annotations

import numpy as np

from itr.view import CaptionAugment

KEEP, MASK, RANDOM, DELETE = range(4)  # actions on an id


def word_actions(words: np.ndarray, uniforms: np.ndarray, rule: CaptionAugment) -> np.ndarray:
    """KEEP, MASK, RANDOM or DELETE for each id, int8 [T].

    ``words`` [T] is the index of each id's word (-1: a special id, always KEEP). ``uniforms`` [W]
    holds one draw in [0, 1) per word.
    """
    share = uniforms / rule.probability if rule.probability > 0 else np.full_like(uniforms, np.inf)
    action = np.where(
        share < rule.mask, MASK, np.where(share < rule.mask + rule.random, RANDOM, DELETE)
    )
    action = np.append(np.where(uniforms < rule.probability, action, KEEP), KEEP)
    return action[words].astype(np.int8)  # index -1 reads the appended KEEP


def augment(
    ids: np.ndarray,
    words: np.ndarray,
    rule: CaptionAugment,
    uniforms: np.ndarray,
    replacements: np.ndarray,
    mask_id: int,
) -> np.ndarray:
    """``ids`` [T] with pieces masked, replaced or deleted, word by word.

    ``replacements`` are the new ids of the replaced pieces, in order; ``words`` and ``uniforms``
    are those of `word_actions`. All words may be deleted; [CLS] and [SEP] stay.
    """
    action = word_actions(words, uniforms, rule)
    changed = np.where(action == MASK, mask_id, ids)
    changed[action == RANDOM] = replacements
    return changed[action != DELETE]
