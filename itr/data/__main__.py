"""Check, convert and measure datasets on disk: itr data check | convert | bench | ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from itr.command import command, run_group

COMMANDS = {  # command -> module with main(arguments) -> exit code, and what it does
    "check": ("itr.data.doctor.cli:main", "what is in a folder, and what is wrong with it"),
    "convert": ("itr.data.tools.convert:main", "a data set from one layout into another"),
    "bench": ("itr.data.tools.bench:main", "samples a second of each stage of reading"),
    "features": (
        "itr.data.tools.features:main",
        "region-like features of pictures from a timm backbone",
    ),
    "guides": (
        "itr.official.clip_guides:main",
        "a CLIP's vector of each picture, beside its regions",
    ),
}


@command
def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    return run_group("itr data", "Check, convert and measure datasets.", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
