"""Checks image files before a conversion copies them into what is made to be shared."""

from __future__ import annotations

import argparse
import os

from itr.data.config import DataConfig
from itr.data.images.decode import not_an_image
from itr.data.records import Split
from itr.errors import DataError


def require_pictures(splits: dict[str, Split], data: DataConfig, args: argparse.Namespace) -> None:
    """Raise DataError for files to copy that are no images, or outside the dataset's folders.

    Annotations may name any file of this machine, and what is converted is made to be shared.
    """
    named = [args.source if data.root is None else data.root, args.images, data.train]
    roots = [os.path.abspath(os.path.expanduser(str(name))) for name in named if name]
    roots = [root if os.path.isdir(root) else os.path.dirname(root) for root in roots]
    for record in (record for split in splits.values() for record in split.records):
        if not isinstance(record.image, str):
            continue
        path = os.path.abspath(record.image)
        inside = any(os.path.commonpath([root, path]) == root for root in roots)
        if not inside and not args.follow_outside:
            raise DataError(
                f"{record.image}: named by {args.source}, but outside of {', '.join(roots)}; "
                "expected images inside the dataset, since they are copied. Pass --images DIR if "
                "they are kept there, or --follow-outside to copy them from anywhere"
            )
        if fault := not_an_image(record.image):
            raise DataError(
                f"{record.image}: named by {args.source} as an image, but {fault}; it is not "
                "copied. Replace it, or remove it from the annotations"
            )
