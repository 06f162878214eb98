"""Tokenizer, cache and augmentation, against literal second implementations."""

import hashlib
import inspect
import json
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from itr.data.packed_strings import PackedStrings
from itr.data.text import tokenizer as tokenizer_module
from itr.data.text.caption_augment import augment
from itr.data.text.known_tokenizers import tokenizer_from_json
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.tokenizer import Tokenizer
from itr.data.text.tokenizer_backends import SPECIALS
from itr.errors import CheckpointError, ConfigError
from itr.view import CaptionAugment, TextView
from tests.conftest import ROOT

CHARACTERS = list("abcdefgh0123.,!?'-")
VOCABULARY = [
    *SPECIALS, *CHARACTERS, *[f"##{c}" for c in "abcdefgh0123"], "bad", "##ed", "face", "##head",
    "cafe", "漢",
]  # fmt: skip
CAPTIONS = [
    "A bad  faced\tCAFÉ, badhead!",
    "",
    "[CLS] a [MASK] [SEP] b",
    "漢a漢 é\u0301 zz z",
    "a" * 100 + " " + "a" * 101,
    "don't-\x00a\u200bb\ufffd",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_vocab(VOCABULARY)


# A literal basic tokenizer and WordPiece, character by character


def basic_tokens(text):
    spaced = ""
    for c in text:
        if c in "\x00\ufffd" or (unicodedata.category(c)[0] == "C" and c not in "\t\n\r"):
            continue
        chinese = 0x4E00 <= ord(c) <= 0x9FFF
        spaced += f" {c} " if chinese else " " if c.isspace() else c
    tokens = []
    for word in spaced.split():
        word = unicodedata.normalize("NFD", word.lower())
        current = ""
        for c in (c for c in word if unicodedata.category(c) != "Mn"):
            if unicodedata.category(c)[0] == "P" or (c.isascii() and not c.isalnum()):
                tokens += [current, c]
                current = ""
            else:
                current += c
        tokens.append(current)
    return [token for token in tokens if token]


def pieces(token):
    if len(token) > 100:
        return ["[UNK]"]
    found, start = [], 0
    while start < len(token):
        for end in range(len(token), start, -1):
            piece = ("##" if start else "") + token[start:end]
            if piece in VOCABULARY:
                break
        else:
            return ["[UNK]"]
        found.append(piece)
        start = end
    return found


def literal(caption):
    """(ids, words) of one caption."""
    ids, words = [VOCABULARY.index("[CLS]")], [-1]
    for number, token in enumerate(basic_tokens(caption)):
        for piece in pieces(token):
            ids.append(VOCABULARY.index(piece))
            words.append(number)
    return [*ids, VOCABULARY.index("[SEP]")], [*words, -1]


def check(tokenizer, captions):
    table = tokenizer.tokenize(captions, TextView())
    assert table.flat.dtype == np.int32 and table.offsets.dtype == np.int64
    assert len(table) == len(captions)
    for index, caption in enumerate(captions):
        ids, words = literal(caption)
        assert table.ids(index).tolist() == ids
        assert table.words[table.offsets[index] : table.offsets[index + 1]].tolist() == words
        assert table.lengths[index] == len(ids)


def test_ids_equal_the_literal_tokenizer(tokenizer):
    check(tokenizer, CAPTIONS)


@given(st.lists(st.text(alphabet="abcdefgzAÉé0123 .,'-!\t漢[]", max_size=60), max_size=4))
def test_ids_equal_the_literal_tokenizer_on_any_text(captions):
    check(Tokenizer.from_vocab(VOCABULARY), captions)


def test_special_tokens_in_a_caption_are_ordinary_text(tokenizer):
    ids = tokenizer.tokenize(["[SEP] [MASK]"], TextView()).ids(0).tolist()
    assert ids.count(tokenizer.sep_id) == 1 and tokenizer.mask_id not in ids


def test_max_length_and_prompt(tokenizer):
    full = tokenizer.tokenize(["bad face a b c"], TextView()).ids(0)
    cut = tokenizer.tokenize(["bad face a b c", "a"], TextView(max_length=5))
    assert cut.ids(0).tolist() == [*full[:4], tokenizer.sep_id]
    assert cut.ids(1).tolist() == tokenizer.tokenize(["a"], TextView()).ids(0).tolist()
    prompted = tokenizer.tokenize(["a b c"], TextView(prompt="bad face "))
    assert prompted.ids(0).tolist() == full.tolist()
    with pytest.raises(ConfigError, match="max_length=1"):
        tokenizer.tokenize(["a"], TextView(max_length=1))
    with pytest.raises(ConfigError, match="cleaner 'albeff'.*albef"):
        tokenizer.tokenize(["a"], TextView(cleaner="albeff"))


def test_vocabularies_that_are_not_berts():
    with pytest.raises(ConfigError, match=r"\[MASK\]"):
        Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])
    with pytest.raises(ConfigError, match=r"\[PAD\] as its first"):
        Tokenizer.from_vocab(["a", *SPECIALS])


# BERT directories


def write_bert(folder, config=None, vocabulary=VOCABULARY):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_from_files_reads_vocab_and_options(tmp_path):
    vocabulary = [*VOCABULARY, "A", "É", "é"]
    folder = write_bert(tmp_path / "cased", {"do_lower_case": False}, vocabulary)
    cased = Tokenizer.from_files(str(folder))
    ids = cased.tokenize(["A É a"], TextView()).ids(0).tolist()
    assert [vocabulary[i] for i in ids] == ["[CLS]", "A", "É", "a", "[SEP]"]
    accents = {"do_lower_case": True, "strip_accents": False}
    kept = Tokenizer.from_files(str(write_bert(tmp_path / "accents", accents, vocabulary)))
    assert vocabulary[kept.tokenize(["É"], TextView()).ids(0)[1]] == "é"
    default = Tokenizer.from_files(str(write_bert(tmp_path / "default")))
    assert default.fingerprint == Tokenizer.from_vocab(VOCABULARY).fingerprint
    (tmp_path / "default" / "vocab.txt").write_bytes("\r\n".join(VOCABULARY).encode())
    assert Tokenizer.from_files(str(tmp_path / "default")).fingerprint == default.fingerprint


@pytest.mark.parametrize("lowercase", [True, False])
def test_from_files_reads_what_transformers_saves(tmp_path, lowercase):
    vocabulary = {token: number for number, token in enumerate([*VOCABULARY, "A"])}
    official = BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    official.save_pretrained(tmp_path / "bert")
    for name in ("vocab.txt", "tokenizer_config.json"):  # tokenizer.json alone has to do
        (tmp_path / "bert" / name).unlink(missing_ok=True)
    tokenizer = Tokenizer.from_files(str(tmp_path / "bert"))
    captions = ["A bad faced CAFÉ, badhead!", "漢a漢", "zz ? b-a"]
    table = tokenizer.tokenize(captions, TextView())
    assert [table.ids(i).tolist() for i in range(3)] == official(captions)["input_ids"]


def test_berts_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="vocab.txt"):
        Tokenizer.from_files(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="model.pretrained=false"):
        Tokenizer.from_files(str(tmp_path / "nowhere" / "bert"))
    write_bert(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.from_files(str(tmp_path / "broken"))


def test_json_round_trip(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocabulary_size == len(VOCABULARY)
    check(again, CAPTIONS)
    cased = Tokenizer(VOCABULARY, lowercase=False)
    assert cased.fingerprint != tokenizer.fingerprint
    assert tokenizer_from_json(cased.to_json()).options == cased.options
    for text in (tokenizer.to_json()[:-9], "{}", '{"tokens": ["a"], "options": {}}'):
        with pytest.raises(CheckpointError, match="damaged"):
            tokenizer_from_json(text)


# A vocabulary from captions


def corpus(n=2000):
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzé漢", k=rng.randint(1, 8)))]
    words += ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 8))) for _ in range(900)]
    return [" ".join(rng.choices(words, k=9)) + " ." for _ in range(n)]


def test_same_captions_same_vocabulary():
    captions = corpus()
    tokenizer = Tokenizer.from_captions(captions, 300)
    assert tokenizer.vocabulary_size == 300
    assert tokenizer.tokens[:5] == list(SPECIALS) and len(set(tokenizer.tokens)) == 300
    random.Random(1).shuffle(captions)
    assert Tokenizer.from_captions(iter(captions), 300).tokens == tokenizer.tokens
    script = (
        f"import random, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"{inspect.getsource(corpus)}\n"
        "from itr.data.text.tokenizer import Tokenizer\n"
        "print(Tokenizer.from_captions(corpus(), 300).fingerprint)"
    )  # another process: other hash seeds
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tokenizer.fingerprint


def test_vocabulary_covers_its_captions():
    captions = ["A man's RED ball.", "the café, the man"]
    tokenizer = Tokenizer.from_captions(captions, 200)
    assert {"man", "red", "ball", "cafe", "the"} <= set(tokenizer.tokens)
    table = tokenizer.tokenize(captions, TextView())
    assert tokenizer.unk_id not in table.flat
    assert len(tokenizer.tokenize(["man ball"], TextView()).flat) == 4
    unseen = tokenizer.tokenize(["mall 漢"], TextView()).ids(0).tolist()
    assert unseen.count(tokenizer.unk_id) == 1  # the letters are known, 漢 is not
    with pytest.raises(ConfigError, match="vocabulary_size=10"):
        Tokenizer.from_captions(captions, 10)


# The cache


def same(a, b):
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("flat", "words", "offsets"))


def test_cache_is_read_and_keyed_by_all_that_matters(tmp_path, tokenizer, monkeypatch):
    fresh = tokenizer.tokenize(CAPTIONS, TextView())
    assert same(tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path), fresh)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "tokenize", None)  # reading must not need it
        assert same(tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path), fresh)
        augmented = TextView(augment=CaptionAugment(), pad_to=40)  # does not change the ids
        assert same(tokenize_cached(tokenizer, CAPTIONS, augmented, tmp_path), fresh)
    others = [
        (tokenizer, CAPTIONS[::-1], TextView()),
        (tokenizer, CAPTIONS, TextView(prompt="a ")),
        (tokenizer, CAPTIONS, TextView(max_length=4)),
        (Tokenizer(VOCABULARY, lowercase=False), CAPTIONS, TextView()),
        (tokenizer, ["a\nb"], TextView()),
        (tokenizer, ["a", "b"], TextView()),
    ]
    for arguments in others:
        assert same(tokenize_cached(*arguments, tmp_path), arguments[0].tokenize(*arguments[1:]))
    assert len(list(tmp_path.iterdir())) == 1 + len(others)  # and nothing temporary is left


def test_pieces_of_captions_give_the_same_ids_and_the_same_file(tmp_path, tokenizer, monkeypatch):
    """Millions are tokenised, and named, piece by piece; as they were at once."""
    whole = tokenizer.tokenize(CAPTIONS, TextView())
    cached = json.dumps([3, tokenizer.fingerprint, "none", "", None, True, False])
    named = hashlib.sha256(cached.encode() + json.dumps(CAPTIONS).encode()).hexdigest()[:32]
    for size in (1, 2, 100_000):
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer_module, "CHUNK", size)
            for captions in (CAPTIONS, PackedStrings.of(["before", *CAPTIONS, "after"])[1:-1]):
                assert same(tokenizer.tokenize(captions, TextView()), whole)
                assert same(tokenize_cached(tokenizer, captions, TextView(), tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == [f"tokens-{named}.npz"]
    assert len(tokenize_cached(tokenizer, [], TextView(), tmp_path)) == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damaged_cache_is_rebuilt(tmp_path, tokenizer, damage):
    fresh = tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(fresh.flat.tobytes())
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    damaged = {"cut": whole[: len(whole) // 2], "flip": flipped, "empty": b"", "text": b"x" * 99}
    path.write_bytes(damaged[damage])
    assert same(tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path), fresh)
    assert same(tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path), fresh)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_unwritable_cache_does_not_stop_a_run(tmp_path, tokenizer):
    (tmp_path / "file").write_text("")
    table = tokenize_cached(tokenizer, CAPTIONS, TextView(), tmp_path / "file" / "cache")
    assert same(table, tokenizer.tokenize(CAPTIONS, TextView()))


# Augmentation


def literal_augment(ids, words, uniforms, replacements, mask_id, rule):
    """Word by word, piece by piece, as the specification tells it."""
    replacements, out = iter(replacements), []
    for number, word in zip(ids, words, strict=True):
        p = 1.0 if word < 0 else uniforms[word]
        if p < rule.probability:
            q = p / rule.probability
            if q < rule.mask:
                out.append(mask_id)
            elif q < rule.mask + rule.random:
                out.append(next(replacements))
        else:
            out.append(number)
    assert next(replacements, None) is None
    return out


def count_replaced(words, uniforms, rule):
    q = [9.0 if w < 0 else uniforms[w] / rule.probability for w in words]
    return sum(rule.mask <= x < rule.mask + rule.random for x in q)


@given(st.data())
def test_augmentation_equals_the_literal_one(data):
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=12))
    words = [-1, *np.repeat(np.arange(len(sizes)), sizes).tolist(), -1]
    ids = list(range(100, 100 + len(words)))
    edges = st.sampled_from([0.0, 0.09999, 0.1, 0.11999, 0.12, 0.19999999999999998, 0.2])
    draw = st.one_of(edges, st.floats(0, 0.25), st.floats(0, 1, exclude_max=True))
    uniforms = data.draw(st.lists(draw, min_size=len(sizes), max_size=len(sizes)))
    rule = data.draw(st.sampled_from([CaptionAugment(), CaptionAugment(0.5, 0.2, 0.7)]))
    new = list(range(900, 900 + count_replaced(words, uniforms, rule)))
    out = augment(
        np.array(ids, np.int32), np.array(words), rule, np.array(uniforms, float), np.array(new), 4
    )
    assert out.tolist() == literal_augment(ids, words, uniforms, new, 4, rule)


def test_everything_may_be_deleted_but_not_the_specials():
    ids, words = np.array([2, 7, 8, 9, 3]), np.array([-1, 0, 0, 1, -1])
    nothing = np.array([], int)
    kept = augment(ids, words, CaptionAugment(), np.array([0.15, 0.19]), nothing, 4)
    assert kept.tolist() == [2, 3]
    off = augment(ids, words, CaptionAugment(probability=0.0), np.zeros(2), nothing, 4)
    assert off.tolist() == ids.tolist()
