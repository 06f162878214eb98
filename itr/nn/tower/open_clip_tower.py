"""Dual encoders of open_clip: their configuration, weights, and what they compute.

B samples, L token ids, D joint width.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itr.data.text.library_tokenizer import library_tokenizer
from itr.errors import ConfigError
from itr.hub import hub_answers
from itr.nn.tower.preprocessing import open_clip_pixels
from itr.nn.tower.tower_names import HF_HUB, LOCAL_DIR, OPEN_CLIP_CONFIG, TowerName
from itr.view import TextView

DEFAULT_CONTEXT = 77
TOKENIZER_OPTIONS = {"clean", "strip_sep_token"}  # of `tokenizer_kwargs` that are known here
CLEANERS = {"lower": "clip", "whitespace": "whitespace", "canonicalize": "canonicalize"}
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def read_open_clip(found: TowerName, key: str, name: str) -> dict[str, Any]:
    """The values of an `Architecture` of the tower ``found``, which the user calls ``name``.

    Raises ConfigError for a configuration that is missing or asks for what is not here.
    """
    model, steps, weights = _configs(found, key, name)
    text = model["text_cfg"]
    where = f"{key}={name}"
    if weights.get("quick_gelu") is not None and found.tag is not None:
        model["quick_gelu"] = bool(weights["quick_gelu"])  # as these weights were trained
    tokenizer, whole, view = _texts(found, text, key, name)
    return {
        "library": "open_clip",
        "kind": found.source.rpartition("/")[2],
        "config": model,
        "tokenizer": tokenizer,
        "whole_tokenizer": whole,
        "text": dataclasses.asdict(view),
        "pixels": dataclasses.asdict(open_clip_pixels(steps, where)),
        "text_config": _hf_text_config(text, where),
        "has_mask": False,
    }


def _configs(
    found: TowerName, key: str, name: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The configurations of model, preprocessing and weights."""
    import open_clip
    from open_clip.factory import merge_preprocess_dict
    from open_clip.pretrained import download_pretrained_from_hf

    base = dataclasses.asdict(open_clip.transform.PreprocessCfg())
    if found.tag is not None:
        model = open_clip.get_model_config(found.source)
        weights = open_clip.get_pretrained_cfg(found.source, found.tag)
        steps = merge_preprocess_dict(base, weights)
    else:
        try:
            if found.source.startswith(LOCAL_DIR):
                folder = Path(found.source.removeprefix(LOCAL_DIR)).expanduser()
                path = folder / OPEN_CLIP_CONFIG
            else:
                _require_reachable(found, key, name)
                repository = found.source.removeprefix(HF_HUB)
                path = Path(download_pretrained_from_hf(repository, filename=OPEN_CLIP_CONFIG))
            stored = json.loads(path.read_text("utf-8"))
            model, weights = stored["model_cfg"], {}
            steps = merge_preprocess_dict(base, stored.get("preprocess_cfg", {}))
        except ConfigError:
            raise
        except Exception as error:  # no such repository, no JSON, another JSON
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{key}={name}: its {OPEN_CLIP_CONFIG} cannot be used ({reason}); expected "
                "model_cfg and preprocess_cfg. Copy or download the repository again"
            ) from error
    steps["size"] = model["vision_cfg"].get("image_size", steps["size"])
    return copy.deepcopy(model), steps, weights


def _texts(
    found: TowerName, text: Mapping[str, Any], key: str, name: str
) -> tuple[str, bool, TextView]:
    """The tokenizer's source, whether it is kept whole, and how the tower reads texts."""
    options = dict(text.get("tokenizer_kwargs") or {})
    unknown = sorted(options.keys() - TOKENIZER_OPTIONS)
    if unknown or text.get("tokenizer_mode"):
        what = unknown[0] if unknown else f"tokenizer_mode={text['tokenizer_mode']}"
        raise ConfigError(
            f"{key}={name}: its tokenizer has the option {what}, which this suite does not have; "
            f"expected {', '.join(sorted(TOKENIZER_OPTIONS))} alone. Choose another tower"
        )
    length = int(text.get("context_length") or DEFAULT_CONTEXT)
    hf_name = text.get("hf_tokenizer_name")
    clean = options.get("clean", "whitespace" if hf_name else "lower")
    view = TextView(
        cleaner=CLEANERS[clean],
        max_length=length,
        pad_to=length,
        strip_sep=bool(options.get("strip_sep_token")),
    )
    if not hf_name:
        return "open_clip", False, view
    if found.source.startswith(LOCAL_DIR):
        hf_name = str(Path(found.source.removeprefix(LOCAL_DIR)).expanduser())
    try:
        left = library_tokenizer(hf_name, key).pad_left
    except ConfigError as error:
        raise ConfigError(
            f"{key}={name}: its tokenizer is that of '{hf_name}', which cannot be opened "
            f"({error}). Where there is network: hf download {hf_name}"
        ) from error
    return hf_name, True, dataclasses.replace(view, pad_left=left)


def _hf_text_config(text: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The configuration of a text tower that open_clip takes from transformers."""
    if not (name := text.get("hf_model_name")):
        return None
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name).to_dict()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{where}: its text tower is '{name}' of the Hugging Face hub, whose config.json is "
            f"not on this machine ({reason}); expected it in the hub's cache. Where there is "
            f"network: hf download {name} config.json"
        ) from error
    return config


def build(config: Mapping[str, Any], text_config: Mapping[str, Any] | None) -> nn.Module:
    """A tower of ``config`` with random weights, in float32.

    Raises ConfigError for a part that would be looked up on the hub: the values may come from a
    checkpoint, and a name in a file is never downloaded.
    """
    import open_clip

    given = copy.deepcopy(dict(config))
    text, vision = given["text_cfg"], given["vision_cfg"]
    looked_up = "hf_model_name" in text and text_config is None
    if looked_up or ":" in str(vision.get("timm_model_name", "")):
        raise ConfigError(
            "model.architecture: a part of it would be looked up on the hub; expected all of its "
            "configuration. Leave it out, to read it from model.tower"
        )
    custom = given.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in given else open_clip.CustomTextCLIP
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if text_config is None:
        return kind(**given)
    with tempfile.TemporaryDirectory() as folder:  # open_clip asks transformers for it by name
        (Path(folder) / "config.json").write_text(json.dumps(text_config))
        text["hf_model_name"], text["hf_model_pretrained"] = folder, False
        return kind(**given)


def load(found: TowerName, config: Mapping[str, Any], key: str, name: str) -> nn.Module:
    """The tower ``found`` with its weights, in float32.

    Raises ConfigError for weights that are not on this machine and cannot be downloaded.
    """
    import open_clip

    _require_reachable(found, key, name)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")
            return open_clip.create_model(
                found.source,
                pretrained=found.tag,
                force_quick_gelu=bool(config.get("quick_gelu")),
                pretrained_text=False,
                require_pretrained=True,
            )
    except Exception as error:  # missing, damaged, of other sizes, no connection
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}={name}: its weights could not be loaded ({reason}); expected the weights of "
            f"this architecture. {_advice(found, key)}"
        ) from error


def _require_reachable(found: TowerName, key: str, name: str) -> None:
    """Raise ConfigError if the weights are neither on this machine nor can be downloaded."""
    if found.source.startswith(LOCAL_DIR):
        return
    from huggingface_hub import try_to_load_from_cache

    repository, file, url = _place(found)
    files = (file,) if file else HUB_FILES
    if repository and any(isinstance(try_to_load_from_cache(repository, f), str) for f in files):
        return
    if url and (Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]).is_file():
        return
    if not hub_answers():
        raise ConfigError(
            f"{key}={name}: its weights are not on this machine, and the hub cannot be reached; "
            f"expected them in the hub's cache or in a directory. {_advice(found, key)}"
        )


def _place(found: TowerName) -> tuple[str, str, str]:
    """Repository and file on the hub, and URL, of the weights; empty: there is none."""
    if found.tag is None:
        return found.source.removeprefix(HF_HUB), "", ""
    import open_clip

    weights = open_clip.get_pretrained_cfg(found.source, found.tag)
    repository, _, file = str(weights.get("hf_hub", "")).rpartition("/")
    return repository, file, str(weights.get("url", ""))


def _advice(found: TowerName, key: str) -> str:
    if found.source.startswith(LOCAL_DIR):
        return f"Copy open_clip_model.safetensors into the directory, or pass another {key}"
    repository = _place(found)[0]
    return (
        f"Where there is network: hf download {repository} --local-dir DIR; then pass "
        f"{key}=local-dir:DIR"
    )


class OpenCLIPAdapter:
    """What a dual encoder of open_clip computes."""

    def images(self, tower: Any, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D], not normalized."""
        return tower.encode_image(pixels)

    def texts(self, tower: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Ids [B, L], padded to all positions -> [B, D], not normalized."""
        return tower.encode_text(tokens)

    def scale(self, tower: Any) -> Tensor:
        """The factor on the cosines, a scalar."""
        return tower.logit_scale.reshape(()).exp()

    def scale_name(self) -> str:
        """The parameter that holds the scale."""
        return "logit_scale"

    def bias(self, tower: Any) -> Tensor | None:
        """What a sigmoid loss adds to the scaled cosines, a scalar; None: it was never trained."""
        bias = getattr(tower, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def unused(self, tower: nn.Module) -> tuple[str, ...]:
        """Modules and parameters of ``tower`` that no embedding depends on."""
        return ("text_decoder",) if hasattr(tower, "text_decoder") else ()

    def text_modules(self, tower: Any) -> list[nn.Module]:
        """The modules of the text tower."""
        if hasattr(tower, "text"):
            return [tower.text]
        return [tower.transformer, tower.token_embedding, tower.ln_final]
