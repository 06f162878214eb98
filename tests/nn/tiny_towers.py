"""A tiny random tower of every family, saved as its library saves it."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from itr.data.text.tokenizer import BytePairTokenizer
from itr.data.text.tokenizer_backends import learn_wordpiece

SENTENCES = [
    "a red ball lies on the blue box near the green house",
    "two dogs play with a ball and one cat looks at them",
    "the man in the yellow coat waits for the last train home",
    "it's naïve to sit in a café with five friends & no money",
]
TEXTS = [
    "A Red Ball lies on the blue box!",
    "  two   dogs,\tplay ... with_a <b>cat</b> &amp; it's fine ",
    "naïve café ☕ 狗 ÅNGSTRÖM 42",
    "the man " * 30,
    "x",
]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
LAYERS, POSITIONS, PIXELS = {"num_hidden_layers": 2}, 20, 32


def _pieces(kind: str) -> bytes:
    """A SentencePiece model with the special tokens of T5 or XLM-R."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        model_type=kind,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def _clip_tokenizer(_: Path) -> Any:
    learned = BytePairTokenizer.learn(SENTENCES, 600, "clip")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): n for n, token in enumerate(learned.tokens)}
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=learned.merges, model_max_length=POSITIONS
    )


def _siglip_tokenizer(folder: Path) -> Any:
    (folder / "spiece.model").write_bytes(_pieces("unigram"))
    return transformers.SiglipTokenizer(
        str(folder / "spiece.model"),
        model_max_length=POSITIONS,
        model_input_names=["input_ids"],
    )


def _siglip2_tokenizer(_: Path) -> Any:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    specials += [f"<0x{byte:02X}>" for byte in range(256)]
    learned = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    learned.train_from_iterator(SENTENCES, BpeTrainer(vocab_size=340, special_tokens=specials))
    model = json.loads(learned.to_str())["model"]
    return transformers.Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
        model_max_length=POSITIONS,
        model_input_names=["input_ids"],
    )


def _roberta_tokenizer(_: Path) -> Any:
    loaded = sentencepiece.SentencePieceProcessor(model_proto=_pieces("unigram"))
    learned = [
        (loaded.id_to_piece(n), loaded.get_score(n)) for n in range(3, loaded.get_piece_size())
    ]
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*specials, *learned, ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=POSITIONS)


def _bert_tokenizer(_: Path) -> Any:
    tokens = learn_wordpiece(SENTENCES, 400)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=POSITIONS)


def _square(name: str, **steps: Any) -> Any:
    size = {"height": PIXELS, "width": PIXELS}
    return getattr(transformers, name)(**{"size": size, **steps})


def _cropped(**steps: Any) -> Any:
    size, crop = {"shortest_edge": PIXELS}, {"height": PIXELS, "width": PIXELS}
    return transformers.CLIPImageProcessor(**{"size": size, "crop_size": crop, **steps})


def _clip(vocabulary: int, **text: Any) -> Any:
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text = {**SIZES, **LAYERS, "max_position_embeddings": POSITIONS, **ids, **text}
    vision = {**SIZES, **LAYERS, "image_size": PIXELS, "patch_size": 8}
    return {"text_config": {"vocab_size": vocabulary, **text}, "vision_config": vision}


def _align(vocabulary: int) -> dict[str, Any]:
    text = {**SIZES, **LAYERS, "max_position_embeddings": POSITIONS, "vocab_size": vocabulary}
    vision = {
        "image_size": PIXELS,
        "hidden_dim": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "depthwise_padding": [],
    }
    return {"text_config": text, "vision_config": vision, "projection_dim": 8}


FAMILIES = {
    "clip": (_clip_tokenizer, _cropped, "CLIP", {"projection_dim": 12}),
    "siglip": (_siglip_tokenizer, lambda: _square("SiglipImageProcessor"), "Siglip", {}),
    "siglip2": (
        _siglip2_tokenizer,
        lambda: _square("SiglipImageProcessor", resample=2),
        "Siglip",
        {},
    ),
    "metaclip_2": (_roberta_tokenizer, _cropped, "MetaClip2", {"projection_dim": 12}),
    "chinese_clip": (
        _bert_tokenizer,
        lambda: _square(
            "ChineseCLIPImageProcessor",
            do_center_crop=True,
            crop_size={"height": PIXELS, "width": PIXELS},
        ),
        "ChineseCLIP",
        {"projection_dim": 12},
    ),
    "altclip": (_roberta_tokenizer, _cropped, "AltCLIP", {"projection_dim": 12}),
    "align": (
        _bert_tokenizer,
        lambda: _square(
            "EfficientNetImageProcessor",
            size={"height": 41, "width": 41},
            do_center_crop=True,
            crop_size={"height": PIXELS, "width": PIXELS},
            rescale_offset=True,
            rescale_factor=1 / 127.5,
            include_top=False,
            do_convert_rgb=True,
        ),
        "Align",
        {},
    ),
}


def save_tower(family: str, folder: Path) -> Path:
    """A random tower of ``family`` below ``folder``, with tokenizer and preprocessing."""
    folder = folder / family
    folder.mkdir()
    tokenizer_of, processor_of, name, options = FAMILIES[family]
    tokenizer = tokenizer_of(folder)
    tokenizer.save_pretrained(folder)
    processor_of().save_pretrained(folder)
    sizes = _sizes(family, len(tokenizer), tokenizer)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, **options)
    model = getattr(transformers, f"{name}Model")(config)
    for parameter in model.parameters():  # biases and scales that are 0 and 1 would hide mistakes
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def save_blip(folder: Path, added: int = 2, captioner: bool = False) -> Path:
    """A random BLIP for retrieval, or a captioner, with ``added`` ids behind its vocabulary."""
    folder.mkdir()
    tokenizer = _bert_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    _square("BlipImageProcessor").save_pretrained(folder)
    text = {**SIZES, **LAYERS, "encoder_hidden_size": 16, "max_position_embeddings": POSITIONS}
    text |= {"vocab_size": len(tokenizer) + added, "pad_token_id": tokenizer.pad_token_id}
    vision = {**SIZES, **LAYERS, "image_size": PIXELS, "patch_size": 8}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=12
    )
    torch.manual_seed(0)
    kind = "ConditionalGeneration" if captioner else "ImageTextRetrieval"
    model = getattr(transformers, f"BlipFor{kind}")(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def _sizes(family: str, vocabulary: int, tokenizer: Any) -> dict[str, Any]:
    if family == "align":
        return _align(vocabulary)
    if family == "metaclip_2":
        return _clip(vocabulary, eos_token_id=2, bos_token_id=0, pad_token_id=1)
    if family == "altclip":
        positions = {"max_position_embeddings": POSITIONS + 2, "project_dim": 16}
        return _clip(vocabulary, eos_token_id=2, bos_token_id=0, pad_token_id=1, **positions)
    if family == "chinese_clip":
        return _clip(vocabulary, pad_token_id=0)
    pads = {"pad_token_id": tokenizer.pad_token_id, "projection_size": 16}
    return _clip(vocabulary, **pads)


OPEN_CLIP = {
    "clip": {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": PIXELS,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {"context_length": POSITIONS, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {},
    },
    "siglip": {
        "model_cfg": {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": PIXELS,
                "timm_model_name": "test_vit",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": POSITIONS,
                "vocab_size": 400,
                "hf_tokenizer_name": "here",
                "tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True},
                "width": 64,
                "heads": 2,
                "layers": 2,
                "no_causal_mask": True,
                "pool_type": "last",
            },
        },
        "preprocess_cfg": {"resize_mode": "squash", "interpolation": "bilinear"},
    },
    "roberta": {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": PIXELS,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": POSITIONS,
                "hf_model_name": "BERT",
                "hf_tokenizer_name": "here",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "mean_pooler",
            },
        },
        "preprocess_cfg": {"resize_mode": "longest", "fill_color": 99},
    },
}


def save_open_clip(name: str, folder: Path) -> Path:
    """A random tower of open_clip below ``folder``, in the layout of its repositories."""
    import open_clip

    folder = folder / f"open_clip_{name}"
    folder.mkdir()
    config = copy.deepcopy(OPEN_CLIP[name])
    model, text = config["model_cfg"], config["model_cfg"]["text_cfg"]
    if "hf_tokenizer_name" in text:
        tokenizer = _bert_tokenizer(folder)
        tokenizer.save_pretrained(folder)
    if "hf_model_name" in text:
        text["hf_model_name"] = str(folder / "bert")
        sizes = {**SIZES, **LAYERS, "max_position_embeddings": POSITIONS}
        bert = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
        transformers.BertModel(bert).save_pretrained(text["hf_model_name"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    kind = open_clip.CLIP
    arguments = {key: value for key, value in copy.deepcopy(model).items() if key != "custom_text"}
    if "custom_text" in model or "hf_model_name" in text:
        kind = open_clip.CustomTextCLIP
    if "hf_model_name" in text:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    made = kind(**arguments)
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    return folder
