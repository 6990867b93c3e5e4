"""What a file claims is not believed: sizes, places and shapes are compared with the bytes that are there."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.checkpoints.unpickler import Unpickler
from mnv3_fast.models.variants import build
from tests.checkpoints.hostile import legacy_of, name, text, zip_of


def storage(kind: bytes, key: str, count: int) -> bytes:
    """A persistent id."""
    number = struct.pack("<i", count) if count < 1 << 31 else b""
    put = b"J" + number if number else b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + put + b"tQ"


def tensor(count: int, size: bytes, stride: bytes = b"K\x01\x85", kind: bytes = b"FloatStorage") -> bytes:
    """The value of a pickle: a tensor."""
    arguments = storage(kind, "0", count) + b"K\x00" + size + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def wrapped(value: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + value + b"s."


def doubled(times: int) -> bytes:
    """A pair of twice the same pair of twice the same pair."""
    levels = (struct.pack("<I", i) for i in range(times))
    pairs = b"".join(b"j" + i + b"j" + i + b"\x86\x94" for i in levels)
    return b"(]\x94" + pairs + b"t"


HUGE = struct.pack("<q", 1 << 40)
DAMAGED = "is no checkpoint, or is damaged: "
CLAIMS: dict[str, tuple[bytes, str]] = {
    "bytes": (wrapped(b"\x8e" + HUGE + b"abc"), DAMAGED),
    "text": (wrapped(b"\x8d" + HUGE + b"abc"), DAMAGED),
    "frame": (b"\x80\x04\x95" + HUGE + b"N", DAMAGED),
    "long": (wrapped(b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"abc"), DAMAGED),
    "storage": (wrapped(tensor(1 << 40, b"K\x01\x85")), "claims a tensor of 1099511627776 elements"),
    "more than an entry": (wrapped(tensor(5, b"K\x05\x85")), "a tensor of 5 elements has 16 bytes"),
    "negative": (wrapped(tensor(-4, b"K\x01\x85")), "claims a tensor of -4 elements"),
    "size": (wrapped(tensor(4, b"K\x05\x85")), "a tensor that is larger than its storage"),
    "stride": (wrapped(tensor(4, b"K\x02\x85", b"K\x04\x85")), "a tensor that is larger than its storage"),
    "expanded": (wrapped(tensor(4, b"\x8a\x08" + HUGE + b"\x85", b"K\x00\x85")), "larger than its storage"),
    "negative stride": (wrapped(tensor(4, b"K\x02\x85", b"J\xff\xff\xff\xff\x85")), "an impossible shape"),
    "dimensions": (wrapped(tensor(4, b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t")), "impossible shape"),
    "no such entry": (wrapped(tensor(4, b"K\x04\x85").replace(text("0"), text("9"))), "it has no entry archive/data/9"),
    "a path as key": (wrapped(tensor(4, b"K\x04\x85").replace(text("0"), text("../../x"))), "it has no entry"),
    "a tuple of tuples as key": (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "it has a tuple as a key"),
    "persistent id": (wrapped(b"(" + text("module") + name(build) + text("a.py") + text("") + b"tQ"), "refers to something outside"),
    "persistent text": (wrapped(text("x") + b"Q"), "refers to something outside"),
    "call of text": (wrapped(text("x") + b")R"), "it calls a str"),
    "call of a tensor": (wrapped(tensor(4, b"K\x04\x85") + b")R"), "it calls a Tensor"),
    "state of a tensor": (wrapped(tensor(4, b"K\x04\x85") + b"}b"), "it sets the state of a Tensor"),
    "state of a name": (wrapped(b"ctorch._utils\n_rebuild_tensor_v2\n}b"), "it sets the state of the name torch._utils"),
    "items of a tensor": (wrapped(tensor(4, b"K\x04\x85") + b"NNs"), "it sets items of a Tensor"),
    "appends to a tuple": (wrapped(b")Na"), "it appends to a tuple"),
    "encode": (wrapped(b"(" + text("x" * 100_000) + b"\x94" + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 3000 + b"t"), "blows up far beyond its size"),
    "dictionaries": (wrapped(b"(](" + b"K\x01N\x86" * 3000 + b"e\x94" + b"ccollections\nOrderedDict\n\x94" + b"h\x01h\x00\x85R" * 3000 + b"t"), "blows up far beyond its size"),
    "sets": (wrapped(b"(](" + b"N" * 3000 + b"e\x94" + b"cbuiltins\nset\n\x94" + b"h\x01h\x00\x85R" * 3000 + b"t"), "blows up far beyond its size"),
    "extension": (wrapped(b"\x82\x01"), "the instruction EXT1, which no checkpoint needs"),
    "memo that is not there": (wrapped(b"h\x63"), DAMAGED),
    "no end": (b"\x80\x02}", DAMAGED),
    "empty stack": (b"\x80\x02R.", DAMAGED),
    "array": (wrapped(b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01\x8a\x08" + HUGE + b"\x85cnumpy\ndtype\n" + text("f8") + b"\x85R\x89" + text("") + b"tb"), "an array whose shape does not fit its bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLAIMS)
def test_what_is_claimed_is_not_believed(kind: str, tmp_path: Path) -> None:
    pickled, message = CLAIMS[kind]
    zip_of(pickled, tmp_path / "file.pth", {"data/0": np.arange(4, dtype=np.float32).tobytes()})
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pth")


def test_the_tensor_of_these_tests_is_one(tmp_path: Path) -> None:
    zip_of(
        wrapped(tensor(4, b"K\x04\x85")), tmp_path / "file.pth", {"data/0": np.arange(4, dtype=np.float32).tobytes()}
    )
    assert read_checkpoint(tmp_path / "file.pth")["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [b"Nr\xff\xff\xff\xff", doubled(10_000), b")" + b"\x85" * 200_000])
def test_bombs_that_do_not_go_off(value: bytes, tmp_path: Path) -> None:
    """A memo of four billion places, 2 ** 10000 pairs, a tuple nested two hundred thousand deep."""
    zip_of(wrapped(value), tmp_path / "file.pth")
    assert set(read_checkpoint(tmp_path / "file.pth")) == {"a"}


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnv3_fast.checkpoints.unpickler.MOST_OPCODES", 100)
    with pytest.raises(ValueError, match="more than 100 instructions"):
        Unpickler().load(io.BytesIO(b"\x80\x02" + b"]" * 200 + b"."))


@pytest.mark.parametrize(
    ("storages", "message"),
    [
        (b"\x80\x02].", "its list of storages is another one"),
        (b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q", 1 << 40), "a storage of another length"),
        (b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q", 4) + b"abc", "a tensor of 4 elements has 3 bytes"),
    ],
)
def test_claims_of_old_files(storages: bytes, message: str, tmp_path: Path) -> None:
    legacy_of(wrapped(tensor(4, b"K\x04\x85").replace(b"tQ", b"NtQ")), tmp_path / "file.pth", storages)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pth")


FLOATS = struct.pack("<q", 4) + np.arange(4, dtype=np.float32).tobytes()
KEYS = b"\x80\x02]X\x01\x00\x00\x000a."


@pytest.mark.parametrize(
    ("view", "wanted"), [(b"K\x01K\x02", [1, 2]), (b"K\x03K\x02", None), (b"J\xff\xff\xff\xffK\x02", None)]
)
def test_views_of_storages_in_old_files(view: bytes, wanted: list[int] | None, tmp_path: Path) -> None:
    """Before torch 0.4 several storages could be parts of one."""
    pickled = tensor(4, b"K\x02\x85").replace(b"tQ", text("view") + view + b"\x87tQ")
    legacy_of(wrapped(pickled), tmp_path / "file.pth", KEYS + FLOATS)
    if wanted is None:
        with pytest.raises(ValueError, match="it has a view beyond its storage"):
            read_checkpoint(tmp_path / "file.pth")
    else:
        assert read_checkpoint(tmp_path / "file.pth")["a"].tolist() == wanted


def test_tensors_as_torch_03_wrote_them(tmp_path: Path) -> None:
    pickled = (
        b"ctorch._utils\n_rebuild_tensor\n("
        + storage(b"FloatStorage", "0", 4).replace(b"tQ", b"NtQ")
        + b"K\x00K\x02K\x02\x86K\x02K\x01\x86tR"
    )
    legacy_of(wrapped(pickled), tmp_path / "file.pth", KEYS + FLOATS)
    assert read_checkpoint(tmp_path / "file.pth")["a"].tolist() == [[0, 1], [2, 3]]


def test_another_order_of_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        archive.writestr("archive/data.pkl", wrapped(b"N"))
        archive.writestr("archive/byteorder", b"big")
    legacy_of(wrapped(b"N"), tmp_path / "old.pth")
    old = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(old.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert (tmp_path / "old.pth").read_bytes() != old
    for file in ("big.pth", "old.pth"):
        with pytest.raises(ValueError, match="another order of bytes"):
            read_checkpoint(tmp_path / file)


def test_zip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    zip_of(wrapped(b"N"), path, {"data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="a compressed zip archive, torch.save does not compress"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", wrapped(b"N"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", wrapped(b"N"))
    with pytest.raises(ValueError, match="two entries of one name"):
        read_checkpoint(path)
    zip_of(wrapped(b"N"), path, {"data/0": bytes(64)})
    whole = path.read_bytes()
    place = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/0"))  # its entry in the directory
    path.write_bytes(whole[: place + 20] + struct.pack("<II", 1 << 30, 1 << 30) + whole[place + 28 :])
    with pytest.raises(ValueError, match="entries are together larger than the file"):
        read_checkpoint(path)
