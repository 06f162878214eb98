"""Captioners of other kinds than BLIP: GIT, which continues a text, and chat models (LLaVA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from itr.data.tools.captioner import Captioner, CaptionerOptions

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**SMALL, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16}
WORDS = "a red blue dog cat runs USER: ASSISTANT: Describe the image.".split()
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"
)


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def speak(weight: Tensor, specials: int) -> None:
    """Make random weights say different words, and no special ones."""
    with torch.no_grad():
        weight *= 30
        weight[:specials] = 0


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    inputs = ["input_ids", "attention_mask"]  # as of microsoft/git-base
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_input_names=inputs)
    config = GitConfig(
        vision_config=VISION,
        **SMALL,
        num_hidden_layers=1,
        vocab_size=len(words),
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = GitForCausalLM(config)
    speak(model.output.weight.data, 0)
    with torch.no_grad():
        model.output.bias[:5] = -1e4
    model.save_pretrained(folder)
    GitProcessor(image_processor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS]
    model = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad", "bos", "eos", "unk"), words, strict=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        **{f"{kind}_token": name for kind, name in names.items()},
        additional_special_tokens=["<image>"],
    )
    text = LlamaConfig(
        **SMALL,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=len(words),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=4,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    chat = LlavaForConditionalGeneration(config)
    speak(chat.lm_head.weight.data, 5)
    chat.save_pretrained(folder)
    LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


PICTURES = list(
    torch.randint(
        0, 255, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
)


def one_by_one(folder: Path, words: dict[str, Any], cut: int = 0) -> list[str]:
    """The captions by transformers' own calls, one picture at a time; ``cut`` last ids of the
    prompt are left out."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = []
    for picture in PICTURES:
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        inputs = processor(images=[image], return_tensors="pt", **words)
        for name in ("input_ids", "attention_mask"):
            if cut and name in inputs:
                inputs[name] = inputs[name][:, :-cut]
        tokens = model.generate(
            **inputs, num_beams=5, max_new_tokens=16, no_repeat_ngram_size=3, do_sample=False
        )
        given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        found.append(processor.tokenizer.decode(tokens[0, given:], skip_special_tokens=True))
    return found


@pytest.mark.parametrize("prompt", ["", "a red"])
def test_git_continues_the_prompt(git: Path, prompt: str) -> None:
    captions = Captioner(CaptionerOptions(str(git), prompt), "cpu")(PICTURES)
    # The tokenizer ends a prompt with [SEP], which is GIT's end of a caption.
    expected = one_by_one(git, {"text": prompt}, cut=1) if prompt else one_by_one(git, {})
    assert captions == expected
    assert all(len(caption.split()) == 16 for caption in captions)


@pytest.mark.parametrize("prompt", ["", "Describe the dog"])
def test_a_chat_model_answers_without_the_question(llava: Path, prompt: str) -> None:
    captions = Captioner(CaptionerOptions(str(llava), prompt), "cpu")(PICTURES)
    asked = f"USER: <image> {prompt or 'Describe the image.'} ASSISTANT:"
    assert captions == one_by_one(llava, {"text": [asked]})
    assert len(set(captions)) > 1
