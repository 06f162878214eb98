"""Loads an encoder of the transformers library so that nothing of it stays random in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from itr.errors import CheckpointError, ConfigError, first_of
from itr.files import parse_json
from itr.hub import WEIGHTS, local_or_hub
from itr.weights_file import load_weights_file, reason_of, require_weights

disable_progress_bar()  # it would interfere with our progress bar

CONFIGS = ("config.json", "bert_config.json")  # the second: files of Google
HEADS = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.", "visual_projection")
MAX_LAYERS, MAX_SIZE = 1_000, 10_000_000  # numbers in a config.json that are believed
RANDOM_WEIGHTS = "or model.pretrained=false for random weights of the sizes in"


def load_pretrained(
    name: str,
    key: str,
    kind: str,
    architecture: type[PreTrainedModel],
    config_class: type[PretrainedConfig],
    heads: tuple[str, ...] = HEADS,
    **options: Any,
) -> Any:
    """``architecture`` with the weights of ``name``, a directory or a name on the hub, in float32.

    ``kind`` is the expected ``model_type``; ``options`` go into the configuration. Weights of
    ``heads`` may be missing and stay random. Names may begin with ``module.``, and a file may hold
    its weights below ``model`` or ``state_dict``. Raises ConfigError, naming ``key``, for anything
    else that is missing, damaged, or of another kind.
    """
    group = key.rpartition(".")[0]
    advice = (
        f"pass a local directory (config.json, model.safetensors) or a Hugging Face name, "
        f"{RANDOM_WEIGHTS} {group}"
    )
    what = architecture.__name__
    source = local_or_hub(name, key)
    try:
        config = _config(Path(source), source, kind, config_class)
        for option, value in options.items():
            setattr(config, option, value)
        model, missing = _load(source, architecture, config, heads)
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"{key}={name}: no {what} could be loaded: {error}; {advice}") from error
    # The library raises nearly anything for damaged files and odd sizes.
    except Exception as error:
        reason = reason_of(error)
        raise ConfigError(
            f"{key}={name}: no {what} could be loaded ({reason}); {advice}"
        ) from error
    if missing:
        raise ConfigError(
            f"{key}={name}: {len(missing)} weights of the {what} are missing there: "
            f"{first_of(missing)}; they would stay random. {advice[0].upper()}{advice[1:]}"
        )
    return model


def _load(
    source: str, architecture: Any, config: PretrainedConfig, heads: tuple[str, ...]
) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that ``source`` lacks."""
    files = [path for name in WEIGHTS if (path := Path(source) / name).is_file()]
    for path in files:
        if path.suffix != ".json":
            require_weights(path)
    model, info = architecture.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = _required(info, heads)
    if missing and files and files[0].suffix != ".json":  # wrapped, or of DataParallel?
        state = load_weights_file(files[0])
        if prefix := next((p for p in ("bert.", "roberta.") if _all(state, p)), ""):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
        model, info = architecture.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
        missing = _required(info, heads)
    return model, missing


def _all(state: dict[str, Any], prefix: str) -> bool:
    return all(name.startswith((prefix, "cls.")) for name in state)


def _required(info: dict[str, Any], heads: tuple[str, ...]) -> list[str]:
    """Missing weights that are of none of ``heads``."""
    return sorted(
        name
        for name in info["missing_keys"]
        if not any(f".{name}".find(f".{head}") >= 0 for head in heads)
    )


def _config(
    folder: Path, source: str, kind: str, config_class: type[PretrainedConfig]
) -> PretrainedConfig:
    """The configuration in ``folder``; one without ``model_type`` is taken for a ``kind``."""
    path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if path is None and folder.is_dir():
        raise ConfigError(f"{folder}: contains no config.json")
    if path is None:
        found = AutoConfig.from_pretrained(source)
        if found.model_type != kind:
            raise ConfigError(f"it is a '{found.model_type}'; expected a '{kind}'")
        return found
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON ({reason_of(error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; expected an object")
    stored = values.get("model_type", kind)
    if stored == "clip" and kind == "clip_vision_model":
        values = values.get("vision_config") or {}
    elif stored != kind:
        raise ConfigError(f"it is a '{stored}'; expected a '{kind}'")
    for key, value in values.items():
        most = MAX_LAYERS if key.endswith(("layers", "layer", "heads")) else MAX_SIZE
        if isinstance(value, int) and value > most:
            raise ConfigError(f"{path}: {key}={value}; expected at most {most:,}")
    return config_class.from_dict(values)
