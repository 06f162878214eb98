"""Readers of the layouts that datasets have on disk.

`open_split` opens a split of any of them, as `DataConfig` describes it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DataConfig", "find_layouts", "open_split"]


def __getattr__(name: str) -> Any:
    """The functions of `registry`, which imports the readers of this package when it is used."""
    if name in __all__:
        from itr.data.layouts import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
