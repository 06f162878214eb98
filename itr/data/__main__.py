"""The commands of ``itr data``: check, convert, clipart, caption, bench, features, guides."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from itr.command import command, run_group

COMMANDS = {  # command -> (module:function of arguments -> exit code, what it does)
    "check": ("itr.data.doctor.cli:main", "report what a folder holds and what is wrong with it"),
    "convert": ("itr.data.tools.convert:main", "convert a dataset from one layout to another"),
    "clipart": ("itr.data.tools.clipart.cli:main", "write real pictures with human captions"),
    "caption": ("itr.data.tools.caption:main", "write synthetic captions of images"),
    "bench": ("itr.data.tools.bench:main", "measure the throughput of each stage of data loading"),
    "features": ("itr.data.tools.features:main", "extract region features with a timm backbone"),
    "guides": ("itr.official.clip_guides:main", "add a CLIP vector per image to region arrays"),
}


@command
def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    return run_group("itr data", "Check, convert and measure datasets.", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
