"""Finds Hugging Face repositories: as a local directory, in the local cache, then on the hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from itr.errors import ConfigError

TIMEOUT = 5.0  # seconds for the one request that tests whether the hub answers
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def local_or_hub(name: str, key: str, files: Sequence[str] = WEIGHTS, download: bool = True) -> str:
    """The directory of ``name`` if it is on this machine, else ``name``, to be downloaded.

    ``name`` is a directory or a repository, set by the option ``key``. A repository is on this
    machine if the cache holds one of ``files``. Raises ConfigError if it is not and the hub does
    not answer within `TIMEOUT` seconds, or if it must not be asked (``download=False``).
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{key}={name}: no such directory; pass an existing one ({key}=DIR), or a name on the "
            "Hugging Face hub"
        ) from error
    for file in files:
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return str(Path(cached).parent)
    if not download:
        raise ConfigError(
            f"{key}={name}: not a local directory, and not in the Hugging Face cache "
            f"({constants.HF_HUB_CACHE}); pass a local directory ({key}=DIR)"
        )
    if not hub_answers():
        raise ConfigError(
            f"{key}={name}: not a local directory, not in the Hugging Face cache "
            f"({constants.HF_HUB_CACHE}), and the hub ({constants.ENDPOINT}) cannot be reached; "
            f"pass a local directory ({key}=DIR)"
        )
    return name


@functools.cache
def hub_answers() -> bool:
    """Whether the hub answers one request within `TIMEOUT` seconds; False with HF_HUB_OFFLINE."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # of requests or httpx, depending on the version
        return False
    return True
