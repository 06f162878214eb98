"""Byte pairs of CLIP and RoBERTa, and the cleaners, against other implementations."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from itr.data.text.cleaners import CLEANERS
from itr.data.text.known_tokenizers import open_tokenizer, tokenizer_from_json
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.tokenizer import BytePairTokenizer, Tokenizer
from itr.errors import CheckpointError, ConfigError
from itr.view import TextView, View
from tests.conftest import ROOT
from tests.data.corpus import corpus

CLIP = TextView(cleaner="clip", max_length=77, pad_to=77)
VOCABULARY = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
CAPTIONS = [
    "A man's RED   ball, isn't it?",
    "",
    "caf\u00e9 na\u00efve \u201cquoted\u201d 2023 50% \U0001f600 \u6771\u4eac",
    "&lt;b&gt; Tom &amp;amp; Jerry &lt;/b&gt;",
    "supercalifragilistic " * 40,
    "\u00e2\u20ac\u0153hello\u00e2\u20ac\u009d s\u00c3\u00a3o",
    "\u0130stanbul \u01c5 \u00df\tnbsp\u00a0ideographic\u3000\x01",
]


@pytest.fixture(scope="module")
def clip():
    return Tokenizer.from_files("open_clip")


@pytest.fixture(scope="module")
def theirs():
    return SimpleTokenizer()


def check(clip, theirs, captions):
    table = clip.tokenize(captions, CLIP)
    for index, expected in enumerate(theirs(captions).tolist()):
        found = table.ids(index).tolist()
        assert found + [0] * (77 - len(found)) == expected, captions[index]


def test_clip_ids_equal_open_clips(clip, theirs):
    assert clip.vocabulary_size == 49408 and (clip.cls_id, clip.sep_id) == (49406, 49407)
    assert clip.pad_id == 0 and clip.mask_id is None
    check(clip, theirs, CAPTIONS)


# Letters, digits, marks and spaces of many scripts; those newer than a library's tables differ.
MIXED = st.text(
    alphabet="aB\u00e9\u0130\u00df\u6771\u3042\u0416\U0001f600\u0301 09\u0663.!'<>&;_-\t\u00a0s",
    max_size=30,
)


@given(captions=st.lists(MIXED, min_size=1, max_size=5))
def test_clip_ids_equal_open_clips_on_mixed_text(clip, theirs, captions):
    check(clip, theirs, captions)


def test_ways_to_name_clips_vocabulary(clip, tmp_path):
    for source in (VOCABULARY, VOCABULARY.parent):
        assert Tokenizer.from_files(str(source)).fingerprint == clip.fingerprint
    hugging_face(clip, tmp_path / "hf", ("<|startoftext|>", "<|endoftext|>"))
    assert Tokenizer.from_files(str(tmp_path / "hf")).fingerprint == clip.fingerprint
    (tmp_path / VOCABULARY.name).write_bytes(VOCABULARY.read_bytes()[:9999])
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.from_files(str(tmp_path))
    (tmp_path / VOCABULARY.name).write_bytes(gzip.compress(b"title\na b\n"))
    with pytest.raises(ConfigError, match="48894"):
        Tokenizer.from_files(str(tmp_path))


def hugging_face(tokenizer, folder, last=()):
    """Write vocab.json and merges.txt, the last tokens under other names."""
    folder.mkdir()
    tokens = [*tokenizer.tokens[: len(tokenizer.tokens) - len(last)], *last]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in tokenizer.merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


# Learnt from captions


@pytest.mark.parametrize("style", ["clip", "roberta"])
def test_same_captions_same_vocabulary(style):
    captions = corpus()
    tokenizer = BytePairTokenizer.learn(captions, 700, style)
    assert tokenizer.vocabulary_size == 700 and len(set(tokenizer.tokens)) == 700
    random.Random(1).shuffle(captions)
    assert BytePairTokenizer.learn(iter(captions), 700, style).fingerprint == tokenizer.fingerprint
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.data.corpus import corpus\n"
        "from itr.data.text.tokenizer import BytePairTokenizer\n"
        f"print(BytePairTokenizer.learn(corpus(), 700, {style!r}).fingerprint)"
    )  # another process: other hash seeds
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tokenizer.fingerprint
    again = tokenizer_from_json(tokenizer.to_json())
    assert isinstance(again, BytePairTokenizer) and again.fingerprint == tokenizer.fingerprint
    with pytest.raises(ConfigError, match="vocabulary_size=200: .*bytes"):
        BytePairTokenizer.learn(captions, 200, style)


@pytest.mark.parametrize("style", ["clip", "roberta"])
def test_any_text_can_be_spelled(style, tmp_path):
    """Byte level: nothing is unknown, and the bytes come back."""
    tokenizer = BytePairTokenizer.learn(corpus(), 700, style)
    text = "tea \u6771\u4eac \U0001f600 rats"
    ids = tokenizer.tokenize([text], TextView()).ids(0).tolist()
    assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
    spelled = "".join(tokenizer.tokens[i] for i in ids[1:-1])
    letters = {chr(b): b for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    others = [b for b in range(256) if b not in letters.values()]
    letters |= {chr(256 + n): b for n, b in enumerate(others)}
    spelled = spelled.replace("</w>", chr(256 + others.index(32)) if style == "clip" else "")
    assert bytes(letters[c] for c in spelled).decode().strip() == text


def test_special_ids_of_each_style():
    clip, roberta = (BytePairTokenizer.learn(corpus(), 700, style) for style in ("clip", "roberta"))
    assert (clip.cls_id, clip.sep_id, clip.pad_id) == (698, 699, 0)  # the end is the largest id
    ids = (roberta.cls_id, roberta.pad_id, roberta.sep_id, roberta.unk_id, roberta.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    inside = roberta.tokenize(["a <mask> b"], TextView())
    assert 4 in inside.flat  # a special token written in a text is one


def test_cut_and_end(tmp_path):
    tokenizer = BytePairTokenizer.learn(corpus(), 700, "clip")
    full = tokenizer.tokenize(["tea rats sun"], TextView()).ids(0).tolist()
    cut = tokenizer.tokenize(["tea rats sun"], TextView(max_length=4)).ids(0).tolist()
    assert cut == [*full[:3], tokenizer.sep_id]
    open_ended = tokenizer.tokenize(["tea rats sun"], TextView(end=False, max_length=4))
    assert open_ended.ids(0).tolist() == full[:4]
    tables = [tokenize_cached(tokenizer, ["tea"], TextView(end=e), tmp_path) for e in (True, False)]
    assert tables[0].ids(0).tolist() == [*tables[1].ids(0).tolist(), tokenizer.sep_id]


def test_open_tokenizer_learns_from_cleaned_captions():
    captions = ["A RED ball", "the Blue ball"] * 20
    for name in ("clip-from-captions", "roberta-from-captions", "wordpiece"):
        view = View("pixels", name, text=TextView(cleaner="clip"), vocabulary_size=600)
        tokenizer = open_tokenizer(view, captions)
        words = [t.replace("</w>", "").strip("\u0120#") for t in tokenizer.tokens]
        assert "red" in words and "RED" not in words
        assert len(tokenizer.tokenize(["red ball"], view.text).flat) <= 5


# Files that cannot be used


def test_vocabularies_that_cannot_be_used(tmp_path):
    tokenizer = BytePairTokenizer.learn(corpus(), 600, "roberta")
    hugging_face(tokenizer, tmp_path / "good")
    assert Tokenizer.from_files(str(tmp_path / "good")).fingerprint == tokenizer.fingerprint
    faults = {
        "gaps": lambda v: v | {"zz": 9999},
        "<mask>": lambda v: {("mask" if k == "<mask>" else k): n for k, n in v.items()},
        "merges do not fit": lambda v: {f"{k}?" if n > 500 else k: n for k, n in v.items()},
    }
    path = tmp_path / "good" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    for word, change in faults.items():
        path.write_text(json.dumps(change(dict(vocabulary))))
        with pytest.raises(ConfigError, match=word):
            Tokenizer.from_files(str(tmp_path / "good"))
    path.write_text(json.dumps(vocabulary))
    (tmp_path / "good" / "merges.txt").write_text("a b c\n")
    with pytest.raises(ConfigError, match="damaged merges"):
        Tokenizer.from_files(str(tmp_path / "good"))
    with pytest.raises(CheckpointError, match="damaged"):
        tokenizer_from_json('{"merges": [["a"]], "tokens": ["a"], "style": "clip"}')


# Cleaners


def literal_albef(text):
    """Character by character, as the specification tells it."""
    out = ""
    for c in text.lower():
        if c in ",.'!?\"()*#:;~":
            continue
        out += " " if c in "-/" else c
    out = out.replace("<person>", "person")
    collapsed, run = "", ""
    for c in [*out, None]:
        if c is not None and c.isspace():
            run += c
            continue
        collapsed += " " if len(run) > 1 else run
        run = ""
        collapsed += c or ""
    return " ".join(collapsed.rstrip("\n").strip(" ").split(" ")[:30])


@given(st.text(alphabet="aB cd-/,.'<person>\t\n~\u00e9", max_size=90))
def test_albefs_cleaner_equals_the_literal_one(text):
    assert CLEANERS["albef"](text) == literal_albef(text)


@given(st.text(alphabet=[chr(c) for c in range(0x20, 0x7F)], max_size=60))
def test_plain_text_takes_the_short_way_with_the_same_result(text):
    import html

    import ftfy

    long = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert CLEANERS["clip"](text) == " ".join(long.split()).lower()
