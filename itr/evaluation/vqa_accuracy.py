"""VQA accuracy: answer normalization and the rule of the ten annotators. Q questions.

Source: the data set's evaluator (GT-Vision-Lab/VQA) and Antol et al., "VQA: Visual Question
Answering", ICCV 2015.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from itr.errors import ConfigError

EVALUATORS = ("current", "vendored")
USUAL_ANSWERS = 3129  # entries of the answer list that most papers use
ENOUGH = 3  # equal answers of other annotators that make an answer fully right
ANNOTATORS = 10
MAX_PERIODS = 32  # the evaluator passes a flag of its regular expressions as a count

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
ARTICLES = {"a", "an", "the"}
# The evaluator's entries with capitals (such as Im) are left out: they never match lower case.
CONTRACTIONS = dict(
    pair.split("=")
    for pair in """
    'ow'sat='ow's'at 'ows'at='ow's'at aint=ain't arent=aren't cant=can't couldn'tve=couldn't've
    couldnt=couldn't couldnt've=couldn't've couldve=could've didnt=didn't doesnt=doesn't
    dont=don't hadn'tve=hadn't've hadnt=hadn't hadnt've=hadn't've hasnt=hasn't havent=haven't
    he'dve=he'd've hed=he'd hed've=he'd've hes=he's howd=how'd howll=how'll hows=how's
    isnt=isn't it'dve=it'd've itd=it'd itd've=it'd've itll=it'll maam=ma'am
    mightn'tve=mightn't've mightnt=mightn't mightnt've=mightn't've mightve=might've
    mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
    ow's'at='ow's'at shant=shan't she'dve=she'd've shed've=she'd've shouldn'tve=shouldn't've
    shouldnt=shouldn't shouldnt've=shouldn't've shouldve=should've somebody'd=somebodyd
    somebody'dve=somebody'd've somebodyd've=somebody'd've somebodyll=somebody'll
    somebodys=somebody's someone'dve=someone'd've someoned=someone'd someoned've=someone'd've
    someonell=someone'll someones=someone's something'dve=something'd've somethingd=something'd
    somethingd've=something'd've somethingll=something'll thats=that's there'dve=there'd've
    thered=there'd thered've=there'd've therere=there're theres=there's they'dve=they'd've
    theyd=they'd theyd've=they'd've theyll=they'll theyre=they're theyve=they've twas='twas
    wasnt=wasn't we'dve=we'd've wed've=we'd've werent=weren't weve=we've whatll=what'll
    whatre=what're whats=what's whatve=what've whens=when's whered=where'd wheres=where's
    whereve=where've who'dve=who'd've whod=who'd whod've=who'd've wholl=who'll whos=who's
    whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldn'tve=wouldn't've
    wouldnt=wouldn't wouldnt've=wouldn't've wouldve=would've y'all'dve=y'all'd've
    y'alld've=y'all'd've y'allll=y'all'll yall=y'all yall'd've=y'all'd've yall'll=y'all'll
    you'dve=you'd've youd=you'd youd've=you'd've youll=you'll youre=you're youve=you've
    """.split()
)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def strip_answer(answer: str) -> str:
    """``answer`` without line breaks, tabs and spaces around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=2**16)
def normalize_punctuation(answer: str) -> str:
    """The evaluator's punctuation step.

    Each mark is deleted if it stands beside a space anywhere in the answer, or if the answer holds
    a number such as 1,000; otherwise it becomes a space.
    """
    text, in_number = answer, _COMMA_IN_NUMBER.search(answer) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or in_number else " ")
    return _PERIOD.sub("", text, count=MAX_PERIODS)


@functools.lru_cache(maxsize=2**16)
def normalize_answer(answer: str) -> str:
    """The evaluator's normal form of ``answer``.

    After the punctuation step: lower case, number words as digits, no articles, contractions with
    their apostrophes.
    """
    words = (DIGITS.get(word, word) for word in normalize_punctuation(answer).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_scores(
    answers: Sequence[str], votes: Sequence[Sequence[str]], evaluator: str = "current"
) -> np.ndarray:
    """The accuracy of each answer in per cent, float64 [Q]; NaN for a question without votes.

    For each annotator: min(1, equal answers among the others / 3); the mean over the annotators. A
    question with a single vote counts as if all ten annotators had agreed.

    Args:
        answers: the predicted answers [Q].
        votes: the annotators' answers to each question [Q].
        evaluator: ``current`` normalizes the answer and the votes where the votes differ;
            ``vendored``, the older copy in ALBEF's repository, always normalizes the answer, and
            only the punctuation of the votes, where they differ.

    Raises ConfigError for an unknown evaluator.
    """
    if evaluator not in EVALUATORS:
        raise ConfigError(
            f"evaluator={evaluator}: unknown; expected one of {', '.join(EVALUATORS)}"
        )
    compare = _current if evaluator == "current" else _vendored
    scores = [_score(*compare(*pair)) for pair in zip(answers, votes, strict=True)]
    return np.array(scores, dtype=np.float64)


def _current(answer: str, votes: Sequence[str]) -> tuple[str, list[str]]:
    """What the current evaluator compares."""
    answer, texts = strip_answer(answer), [strip_answer(vote) for vote in votes]
    if len(set(texts)) > 1:
        return normalize_answer(answer), [normalize_answer(text) for text in texts]
    return answer, texts


def _vendored(answer: str, votes: Sequence[str]) -> tuple[str, list[str]]:
    """What the copy in ALBEF's repository compares."""
    answer, texts = normalize_answer(strip_answer(answer)), list(votes)
    if len(set(texts)) > 1:
        texts = [normalize_punctuation(text) for text in texts]
    return answer, texts


def _score(answer: str, votes: Sequence[str]) -> float:
    if not votes:
        return float("nan")
    if len(votes) == 1:
        return 100.0 * (answer == votes[0])
    equal = votes.count(answer)
    mine, others = min(1.0, (equal - 1) / ENOUGH), min(1.0, equal / ENOUGH)
    return 100.0 * (equal * mine + (len(votes) - equal) * others) / len(votes)


def mean_by_group(scores: np.ndarray, groups: Iterable[str | None]) -> dict[str, float]:
    """The mean of ``scores`` [Q] in each group, in alphabetical order.

    Questions without a group or without a score (NaN) are left out.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for score, group in zip(scores.tolist(), groups, strict=True):
        if group is not None and not np.isnan(score):
            members[group].append(score)
    return {group: float(np.mean(members[group])) for group in sorted(members)}


def majority_answer(votes: Sequence[str]) -> str | None:
    """The most frequent normalized answer, the first one of equals; None without votes."""
    if not votes:
        return None
    return Counter(normalize_answer(strip_answer(vote)) for vote in votes).most_common(1)[0][0]


def make_answer_list(votes: Iterable[Sequence[str]], most: int = USUAL_ANSWERS) -> list[str]:
    """The most frequent majority answers of training questions, at most ``most``.

    Sorted by frequency, then alphabetically; the empty answer is left out.
    """
    counts = Counter(majority_answer(question) for question in votes)
    named = [(answer, count) for answer, count in counts.items() if answer]
    return [answer for answer, _ in sorted(named, key=lambda item: (-item[1], item[0]))[:most]]


def answer_coverage(votes: Iterable[Sequence[str]], answer_list: Sequence[str]) -> float:
    """The share of questions, in per cent, whose majority answer is in ``answer_list``.

    An answer that is not in the list can never be given. NaN if no question has votes.
    """
    known = {normalize_answer(strip_answer(answer)) for answer in answer_list}
    hits = [majority_answer(question) in known for question in votes if question]
    return 100.0 * float(np.mean(hits)) if hits else float("nan")
