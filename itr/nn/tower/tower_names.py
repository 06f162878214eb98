"""Finds the tower that ``model.tower`` names: in open_clip, in a directory, or on the hub."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from itr.errors import ConfigError
from itr.hub import WEIGHTS, local_or_hub

KEY = "model.tower"
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes
OPEN_CLIP_CONFIG, CONFIG = "open_clip_config.json", "config.json"
EXPECTED = (
    "expected ARCHITECTURE/PRETRAINED of open_clip (ViT-B-32/laion2b_s34b_b79k), a name on the "
    "Hugging Face hub (google/siglip2-base-patch16-256), or a directory with config.json or "
    "open_clip_config.json"
)
# Names that are suggested beside open_clip's
KNOWN = (
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
    "google/siglip-base-patch16-224",
    "google/siglip-so400m-patch14-384",
    "google/siglip2-base-patch16-224",
    "google/siglip2-base-patch16-256",
    "google/siglip2-so400m-patch14-384",
    "facebook/metaclip-2-worldwide-huge-quickgelu",
    "OFA-Sys/chinese-clip-vit-base-patch16",
    "BAAI/AltCLIP",
    "kakaobrain/align-base",
    "Salesforce/blip-itm-base-coco",
    "Salesforce/blip-itm-base-flickr",
    "Salesforce/blip-itm-large-coco",
)


class TowerName(NamedTuple):
    """A tower that was found: where ``library`` loads it from."""

    library: str  # transformers | open_clip
    source: str  # a directory, or a name as the library takes it
    tag: str | None = None  # open_clip: the name of the weights


def find_tower(name: str | None, key: str = KEY) -> TowerName:
    """The tower ``name``, the value of the option ``key``. Nothing large is read or downloaded.

    Raises ConfigError for a name that neither library knows, with the nearest ones.
    """
    if not name:
        raise ConfigError(f"{key}: names no tower; {EXPECTED}. Pass {key}=NAME")
    if "naflex" in name.lower() and not Path(name).expanduser().exists():
        raise ConfigError(variable_resolution(name, key))
    if name.startswith((LOCAL_DIR, HF_HUB)):
        require_open_clip(name, key)
        if not name.startswith(LOCAL_DIR):
            return TowerName("open_clip", name)
        folder = Path(name.removeprefix(LOCAL_DIR)).expanduser()
        _require_config(name, key, folder)
        return TowerName("open_clip", f"{LOCAL_DIR}{folder}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            return TowerName("transformers", str(folder))
        require_open_clip(name, key)
        _require_config(name, key, folder)
        return TowerName("open_clip", f"{LOCAL_DIR}{folder}")
    architecture, _, tag = name.rpartition("/")
    if architecture in open_clip_names():
        if tag not in open_clip_names()[architecture]:
            tags = open_clip_names()[architecture]
            near = difflib.get_close_matches(tag, tags, 3, 0.3) or tags[:3]
            raise ConfigError(
                f"{key}={name}: open_clip has no weights '{tag}' for {architecture}; expected one "
                f"of its {len(tags)}, such as {', '.join(near)}. Pass {key}={architecture}/"
                f"{(near or ['NAME'])[0]}"
            )
        return TowerName("open_clip", architecture, tag)
    try:
        return TowerName("transformers", local_or_hub(name, key, (*WEIGHTS, CONFIG)))
    except ConfigError as error:
        raise ConfigError(_unknown(name, key, str(error))) from error


def variable_resolution(name: str, key: str) -> str:
    """Why a NaFlex tower is refused, and what to pass."""
    return (
        f"{key}={name}: reads images of variable resolution (NaFlex), but every image of a batch "
        "has one size here; expected a tower of fixed resolution. Pass one, such as "
        "google/siglip2-base-patch16-256"
    )


def require_open_clip(name: str, key: str = KEY) -> None:
    """Raise ConfigError unless open_clip is installed."""
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError(
            f"{key}={name}: needs the package open_clip_torch, which is not installed; run "
            "pip install 'itr-suite[clip]', or pass a tower of transformers"
        )


def open_clip_names() -> dict[str, list[str]]:
    """Architecture -> names of its weights, as open_clip has them; empty without the package."""
    if importlib.util.find_spec("open_clip") is None:
        return {}
    import open_clip

    names: dict[str, list[str]] = {name: [] for name in open_clip.list_models()}
    for architecture, tag in open_clip.list_pretrained():
        names.setdefault(architecture, []).append(tag)
    return names


def _require_config(name: str, key: str, folder: Path) -> None:
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return
    what = f"has neither {CONFIG} nor {OPEN_CLIP_CONFIG}" if folder.is_dir() else "does not exist"
    raise ConfigError(
        f"{key}={name}: the directory {what}; expected a tower in the hub's layout, with its "
        f"weights and its tokenizer. Copy or download the whole repository there"
    )


def _unknown(name: str, key: str, reason: str) -> str:
    """Why ``name`` is unknown, and what is near to it; instructions if it is well-known."""
    if name in KNOWN:
        return (
            f"{reason}. Where there is network, download it with: hf download {name} "
            f"--local-dir DIR"
        )
    tags = [f"{model}/{tag}" for model, tags in open_clip_names().items() for tag in tags]
    near = difflib.get_close_matches(name, [*KNOWN, *tags, *open_clip_names()], 3, 0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return f"{reason}{hint}; {EXPECTED}"
