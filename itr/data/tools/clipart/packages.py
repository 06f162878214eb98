"""Fetches and unpacks Debian's clip-art packages; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from itr.errors import DataError
from itr.files import atomic_folder

PACKAGES = ("openclipart-svg", "openclipart-png")
INSIDE = Path("usr/share/openclipart")  # where the packages keep their folders svg and png


def drawings_folder(packages: str | None, cache: Path) -> Path:
    """The folder with ``svg`` and ``png``.

    ``packages`` holds it, or the .deb files; None: they are downloaded. What is unpacked is kept in
    ``cache``. Raises DataError if there is neither.
    """
    if packages is None:
        return _unpacked(_download(cache / "packages"), cache)
    folder = Path(packages).expanduser()
    if found := _found(folder):
        return found
    return _unpacked(folder, cache)


def _found(folder: Path) -> Path | None:
    """The drawings in an unpacked package, or in their own folder."""
    for root in (folder, folder / INSIDE):
        if (root / "svg").is_dir() and (root / "png").is_dir():
            return root
    return None


def _unpacked(folder: Path, cache: Path) -> Path:
    """The drawings of the .deb files in ``folder``, unpacked once."""
    files = [max(folder.glob(f"{name}_*.deb"), default=None) for name in PACKAGES]
    if None in files:
        raise DataError(
            f"--packages {folder}: expected {PACKAGES[0]}_*.deb and {PACKAGES[1]}_*.deb, or the "
            "folders svg and png of these packages; download both packages from Debian and pass "
            "--packages DIR"
        )
    target = cache / ("+".join(file.stem for file in files if file) + ".unpacked")
    if not target.is_dir():
        _require("dpkg-deb", "unpacks the packages")
        with atomic_folder(target) as draft:
            for file in files:
                _run(["dpkg-deb", "-x", str(file), str(draft)], draft)
    if found := _found(target):
        return found
    raise DataError(f"{target}: no {INSIDE}/svg and png; pass --packages DIR with other versions")


def _download(folder: Path) -> Path:
    """A folder with both .deb files."""
    if not folder.is_dir():
        _require("apt-get", "downloads the packages")
        with atomic_folder(folder) as draft:
            _run(["apt-get", "download", *PACKAGES], draft)
    return folder


def _require(program: str, purpose: str) -> None:
    if shutil.which(program) is None:
        raise DataError(
            f"itr data clipart: {program}, which {purpose}, is not on this machine; unpack "
            f"Debian's packages {' and '.join(PACKAGES)} elsewhere and pass --packages DIR"
        )


def _run(arguments: list[str], folder: Path) -> None:
    """Run a program of Debian. Raises DataError with the end of what it printed."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(
            f"{' '.join(arguments[:2])}: {(done.stderr or done.stdout).strip()[-500:]}; expected "
            f"the packages {' and '.join(PACKAGES)}. Run apt-get update, or pass --packages DIR"
        )
