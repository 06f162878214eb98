"""What contributors wrote about a drawing, read from its SVG file's RDF."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.tools.clipart.picture import Picture
from itr.errors import ConfigError

NAMES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "cc": "http://web.resource.org/cc/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
}
MAX_BYTES = 64_000_000  # of an SVG file


@dataclass
class Drawing:
    """A drawing as it was filed, and what is made of it."""

    file: str  # relative to the folder svg
    raw_title: str
    raw_description: str
    raw_keywords: list[str]
    author: str
    license: str
    title: str = ""
    title_is_file_name: bool = False
    description: str = ""
    keywords: list[str] = field(default_factory=list)
    file_phrase: str = ""  # the file's name as words
    folders: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    concept: str = ""  # the title's words without digits, plurals, colors
    group: str = ""  # drawings of one concept or one look
    split: str = ""
    name: str = ""  # of the image file
    picture: Picture | None = None


def xml_library() -> Any:
    """``lxml.etree``. Raises ConfigError if it is missing."""
    try:
        return importlib.import_module("lxml.etree")
    except ImportError as error:
        raise ConfigError(
            "itr data clipart: lxml is not installed; run pip install 'itr-suite[real]'"
        ) from error


def read_drawing(etree: Any, root: Path, file: str) -> Drawing | None:
    """The metadata of ``root/svg/file``, or None if it cannot be read.

    The files are strangers': no entity is expanded, no DTD loaded, nothing fetched.
    """
    path = root / "svg" / file
    parser = etree.XMLParser(
        recover=True, huge_tree=True, resolve_entities=False, load_dtd=False, no_network=True
    )
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        tree = etree.parse(str(path), parser)
    except (etree.XMLSyntaxError, OSError):
        return None
    if tree.getroot() is None:
        return None
    subjects = tree.xpath("//cc:Work/dc:subject//rdf:li", namespaces=NAMES)
    return Drawing(
        file,
        _first(tree, "//cc:Work/dc:title"),
        _first(tree, "//cc:Work/dc:description"),
        [(node.text or "").strip() for node in subjects],
        _first(tree, "//cc:Work/dc:creator//dc:title"),
        _first(tree, "//cc:Work/cc:license/@rdf:resource"),
    )


def _first(tree: Any, path: str) -> str:
    """The first text at ``path`` that is not empty."""
    for node in tree.xpath(path, namespaces=NAMES):
        text = node if isinstance(node, str) else "".join(node.itertext())
        if text.strip():
            return str(text.strip())
    return ""
