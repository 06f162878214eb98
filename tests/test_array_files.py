"""NumPy's files of a stranger: what is declared is compared with what is there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from itr.array_files import read_array, read_arrays


def npy(header: str, values: bytes = b"") -> bytes:
    """A .npy file with this header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


def zipped(path: Path, *entries: tuple[str, bytes], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def declared(shape: str, kind: str = "<f4") -> bytes:
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}", b"\0" * 64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (declared("(1000000000000,)"), "declares float32 of shape"),
        (declared("(4294967296, 4294967296)"), "declares float32"),  # whose product is 2 ** 64
        (declared("(-1,)"), "shape"),
        (declared("(1000000000000,)", "<U0"), "declares"),
        (declared("(4,)", "|O"), "never unpickled"),
        (npy("(" * 3000), "damaged"),
        (npy("{'descr': '<f4', 'shape': (2,)}"), "keys"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "magic"),
    ],
)
def test_arrays_that_cannot_be(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    for read, file in (
        (read_array, path),
        (read_arrays, zipped(tmp_path / "a.npz", ("a.npy", content))),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            read(file)
        assert len(str(refusal.value).splitlines()) == 1


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(700 << 20, np.uint8))
    path = zipped(tmp_path / "a.npz", ("a.npy", zeros.getvalue()), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"need 0\.7 GB, but the file has 0\.7 MB"):
        read_arrays(path)


def test_what_is_no_archive_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match="without a name"):
        read_arrays(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="no array"):
        read_arrays(zipped(tmp_path / "a.npz", ("notes.txt", b"hello")))
    with pytest.raises(OSError, match="folder"):
        read_arrays(tmp_path)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 3))}
    arrays["d"] = np.asfortranarray(arrays["a"])
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_arrays(tmp_path / "a.npz")
        assert all(np.array_equal(found[key], value) for key, value in arrays.items())
    np.save(tmp_path / "a.npy", arrays["d"])
    assert np.array_equal(read_array(tmp_path / "a.npy"), arrays["a"])
