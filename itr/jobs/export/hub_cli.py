"""The command ``itr export``: a trained model in the layout of other libraries."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itr import checkpoint
from itr.command import command
from itr.data.text.known_tokenizers import tokenizer_from_json
from itr.errors import CheckpointError
from itr.files import atomic_folder, explain_write_error
from itr.jobs.export.hub_layout import MODELS, write_adapters, write_model
from itr.models.adapters import lora_of
from itr.models.build import restore, restore_merged
from itr.terminal import say
from itr.training.checkpointing import resolve_checkpoint

ABOUT = "Write a trained model in the layout of Hugging Face: transformers, open_clip or peft."


@command
def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="itr export", description=ABOUT)
    parser.add_argument("checkpoint", type=Path, help="run directory or checkpoint of ours")
    parser.add_argument("--format", choices=("huggingface",), default="huggingface")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--adapters", action="store_true", help="the LoRA adapters alone, as peft loads them"
    )
    options = parser.parse_args(arguments)
    path = resolve_checkpoint(options.checkpoint)
    for line in export(path, options.out, options.adapters):
        say(line)
    say(f"written: {options.out}")


def export(path: Path, out: Path, adapters: bool = False) -> list[str]:
    """Write the checkpoint ``path`` of ours to the folder ``out``; returns lines about it.

    Raises CheckpointError for a method that other libraries do not have, and, with ``adapters``,
    for a checkpoint without any.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: an authors' file; expected a run directory or a checkpoint of ours. Convert "
            "it first: itr official convert"
        )
    if out.exists():
        raise CheckpointError(f"--out {out}: exists already; expected a new folder. Pass another")
    meta = checkpoint.read_model_meta(path)
    if (name := meta["model_name"]) not in MODELS:
        raise CheckpointError(
            f"{path}: a checkpoint of model={name}, which no other library has; expected one of "
            f"{', '.join(MODELS)}. For the authors' format, itr official export"
        )
    with explain_write_error(out, "the model", "pass --out elsewhere"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as folder:
            return _write(path, meta, folder, adapters)


def _write(path: Path, meta: dict[str, Any], folder: Path, adapters: bool) -> list[str]:
    if adapters:
        model = restore(path, meta)
        if (options := lora_of(model)) is None:
            raise CheckpointError(
                f"{path}: has no adapters; expected a run with model.lora.rank. Leave --adapters "
                "out to export the whole model"
            )
        return write_adapters(model, options, meta["model_config"], folder)
    model, rank = restore_merged(path, meta)
    merged = [] if rank is None else [f"the adapters of rank {rank} are merged into the weights"]
    return [*merged, *write_model(model, tokenizer_from_json(meta["tokenizer"]), folder)]
