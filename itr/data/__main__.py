"""Data sets on disk: itr data check | convert | bench | features | guides ...

Each has --help.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {  # command -> module with main(arguments) -> exit code, and what it does
    "check": ("itr.data.doctor.cli", "what is in a folder, and what is wrong with it"),
    "convert": ("itr.data.tools.convert", "a data set from one layout into another"),
    "bench": ("itr.data.tools.bench", "samples a second of each stage of reading"),
    "features": (
        "itr.data.tools.features",
        "region-like features of pictures from a timm backbone",
    ),
    "guides": (
        "itr.official.clip_guides",
        "a CLIP's vector of each picture, beside its regions",
    ),
}


def main(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        print("usage: itr data COMMAND ...", file=sys.stderr)
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:10s} {what}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[arguments[0]]
    return importlib.import_module(module).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
