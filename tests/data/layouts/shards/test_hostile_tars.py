"""Tars that a stranger or a broken disk wrote: read in finite time, what is odd is counted."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from itr.data.layouts.shards.index import ShardIndex, index_shard
from tests.data.image_files import encoded, photo

pytestmark = pytest.mark.usefixtures("in_time")  # fails instead of hanging

JPEG = encoded(photo(seed=1))


def members(key: str, text: bytes = b"a dog", meta: object = None) -> dict[str, bytes]:
    """The members of one sample, by name."""
    meta = {"synthetic_caption": "a cat"} if meta is None else meta
    content = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    return {f"{key}.jpg": JPEG, f"{key}.txt": text, f"{key}.json": content}


def packed(files: dict[str, bytes]) -> bytes:
    """A tar of ``files`` in GNU format."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


SOUND = packed({**members("000001"), **members("000002"), **members("000003")})


def indexed(path: Path, content: bytes) -> ShardIndex:
    path.write_bytes(content)
    return index_shard(path, "synthetic_caption")


def header(kind: bytes, size: int, name: bytes = b"x") -> bytes:
    """A header block with a valid checksum; a negative size is written in base 256."""
    field = b"%011o\0" % size if size >= 0 else b"\xff" + (256**11 + size).to_bytes(11, "big")
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[124:136], block[156:157], block[257:265] = field, kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    return header(kind, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


HOSTILE = {
    "negative size": header(b"0", -512, b"000004.jpg"),
    "negative size of a long name": header(b"L", -512),
    "negative size in a pax header": extended(b"13 size=-512\n") + header(b"0", 5, b"000004.jpg"),
    "chain of pax headers": extended(b"8 a=bcd\n") * 3000,
    "chain of long names": extended(b"name", b"L") * 3000,
    "digits without end": extended(b"1" * 300_000),
    "huge pax header": header(b"x", 1 << 40),
    "cut sparse map": header(b"S", 512)[:482] + b"\1" + header(b"S", 512)[483:],
    "bad sparse map": extended(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header(b"0", 512, b"000004.jpg")
    + b"x\n".ljust(512),
    "garbage": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_ends_its_tar(kind: str, tmp_path: Path) -> None:
    content = SOUND.rstrip(b"\0")
    content += bytes(-len(content) % 512) + HOSTILE[kind] + bytes(10240)
    index = indexed(tmp_path / "a.tar", content)
    # The last sample before a fault is left out: members of it may be missing.
    assert index.fault and [*index.keys] == ["000001", "000002"]


ODD: dict[str, tuple[dict[str, bytes], str]] = {
    "deep JSON": (members("x", meta=b'{"a":' * 100_000), "invalid JSON"),
    "digits": (members("x", meta=b'{"image_id": ' + b"1" * 5000 + b"}"), "invalid JSON"),
    "long text": (members("x", text=b"a" * ((1 << 24) + 1)), "more than 16 MiB"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_sample_is_left_out(kind: str, tmp_path: Path) -> None:
    files, reason = ODD[kind]
    index = indexed(tmp_path / "a.tar", packed({**members("0"), **files, **members("1")}))
    assert [*index.keys] == ["0", "1"] and not index.fault
    assert [count for text, count in index.broken.items() if reason in text] == [1]


@pytest.mark.parametrize("number", [2**63 + 5, -(2**70), 1e300, float("nan"), True, [1], "x"])
def test_an_odd_id_is_not_kept(number: object, tmp_path: Path) -> None:
    meta = {"synthetic_caption": "a", "image_id": number}
    assert indexed(tmp_path / "a.tar", packed(members("0", meta=meta))).ids.tolist() == [-1]


def test_a_sparse_member_is_left_out(tmp_path: Path) -> None:
    sparse = bytearray(header(b"S", 512, b"000002.jpg"))
    sparse[386:398], sparse[398:410] = b"%011o\0" % 0, b"%011o\0" % 512  # offset, bytes
    sparse[483:495] = b"%011o\0" % (1 << 30)  # declared size
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    rest = packed({"000002.txt": b"a", **members("000003")})
    first = packed(members("000001")).rstrip(b"\0")
    first += bytes(-len(first) % 512)
    index = indexed(tmp_path / "a.tar", first + bytes(sparse) + JPEG[:512].ljust(512) + rest)
    assert [*index.keys] == ["000001", "000003"] and index.broken == {"a sparse member": 1}


def test_a_tar_that_begins_with_a_fault_has_no_sample(tmp_path: Path) -> None:
    index = indexed(tmp_path / "a.tar", header(b"0", -512) + SOUND)
    assert index.fault and len(index) == 0 and index.unread > 0
