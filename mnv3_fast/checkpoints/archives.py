"""Files of ``torch.save``, both kinds: zip archives, and the stream of pickles that it wrote before torch 1.6.

Nothing is allocated on the word of a file alone: a tensor's claim is compared with the bytes that are there.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mnv3_fast.checkpoints.unpickler import Unpickler
from mnv3_fast.checkpoints.values import Refused

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of torch.save before 1.6 begins with (torch.serialization.MAGIC_NUMBER, PROTOCOL_VERSION)."""

KNOWN = (
    (0, b"<", "it is an HTML or XML page, perhaps what a failed download left"),
    (0, b"version https://git-lfs", "it is a pointer of git LFS; `git lfs pull` gets the file"),
    (0, b"\x89HDF", "it is HDF5, as Keras writes it, which cannot be read yet"),
    (0, b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (257, b"ustar", "it is a tar archive, perhaps of torch before 0.1.10, which a newer torch can load and save"),
)
"""What is told from a file's first bytes, and where these stand."""


def read_torch_file(path: Path) -> tuple[Any, set[str]]:
    """What was saved, on the CPU, and the names of the kinds of objects that are inert placeholders in it.

    Raises:
        Refused: if it is no file of ``torch.save``, or one of a kind that is not read; or whatever damage provokes.
    """
    with path.open("rb") as file:
        head = file.read(512)
        if len(head) > 9 and int.from_bytes(head[:8], "little") < 1 << 27 and head[8:9] == b"{":
            raise Refused("it is a safetensors file; its name has to end with .safetensors")
        is_zip = head.startswith(b"PK")
        if not is_zip and not head.startswith(b"\x80"):
            refuse_others(head)
        file.seek(0)
        return (_read_zip if is_zip else _read_legacy)(file, path.stat().st_size)


def refuse_others(head: bytes, but: str = "") -> None:
    """Refuses what is known by its first bytes to be something else.

    Raises:
        Refused: with what it is.
    """
    if not head:
        raise Refused("it is empty")
    for start, known, reason in KNOWN:
        if head[start:].startswith(known) or head.lstrip().startswith(known):
            raise Refused(but + reason)
    if but and head.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise Refused(f"{but}it is a {'zip archive' if head.startswith(b'PK') else 'pickle'}, as torch.save writes it")


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        _check_zip(archive.infolist(), size)
        top = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("data.pkl")
        order = archive.read(f"{top}byteorder") if f"{top}byteorder" in entries else b"little"
        if order != sys.byteorder.encode():
            raise Refused("it was written on a machine with another order of bytes")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int, view: Any) -> Tensor:
            name = f"{top}data/{key}"
            if key not in storages:
                if count and name not in entries:
                    raise Refused(f"it has no entry {name}")
                storages[key] = _storage(dtype, count, lambda: archive.read(name), size)
            return _same(storages[key], dtype, count)

        machine = Unpickler(storage)
        return machine.load(io.BytesIO(archive.read(f"{top}data.pkl"))), machine.unknown


def _check_zip(infos: list[zipfile.ZipInfo], size: int) -> None:
    """What torch.save writes: nothing compressed (so nothing can blow up), no name twice, no bytes shared."""
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise Refused("it is a zip archive with two entries of one name")
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refused("it is a TorchScript archive, which holds code; save torch.jit.load(...).state_dict()")
    if any(name.endswith(("model.weights.h5", "saved_model.pb", ".npy")) for name in names):
        raise Refused("it is an archive of Keras, TensorFlow or numpy, which cannot be read yet")
    if sum(name.count("/") == 1 and name.endswith("/data.pkl") for name in names) != 1:
        first = f"its first entry is {names[0]!r}" if names else "it has no entries"
        raise Refused(f"it is a zip archive, but none of torch.save: {first}")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise Refused("it is a compressed zip archive, torch.save does not compress")
    if sum(info.file_size for info in infos) > size:
        raise Refused("it is a zip archive whose entries are together larger than the file")


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    first = Unpickler().load(file)
    if first != LEGACY_MAGIC:
        if isinstance(first, dict) and any("@@" in str(key) or ".w_0" in str(key) for key in list(first)[:1000]):
            raise Refused("it is PaddlePaddle's .pdparams, which cannot be read yet")
        raise Refused("it is a pickle, but none of torch.save")
    if Unpickler().load(file) != LEGACY_PROTOCOL:
        raise Refused("it is of a protocol of torch.save that is unknown")
    system = Unpickler().load(file)
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise Refused("it was written on a machine with another order of bytes")
    storages: dict[str, Tensor] = {}
    claimed = 0

    def storage(dtype: torch.dtype, key: str, count: int, view: Any) -> Tensor:
        nonlocal claimed
        if key not in storages:
            storages[key] = _storage(dtype, count, None, size - claimed)
            claimed += dtype.itemsize * count
        flat = _same(storages[key], dtype, count)
        if view is None:
            return flat
        _, offset, length = view
        if not 0 <= offset <= offset + length <= count:
            raise Refused("it has a view beyond its storage")
        return flat[offset : offset + length]

    machine = Unpickler(storage)
    value = machine.load(file)
    keys = Unpickler().load(file)
    if sorted(map(str, keys)) != sorted(storages):
        raise Refused("its list of storages is another one than those of its tensors")
    for key in map(str, keys):
        _fill(storages[key], file)
    return value, machine.unknown


def _storage(dtype: torch.dtype, count: int, read: Callable[[], bytes] | None, most: int) -> Tensor:
    """A flat tensor of so many elements, filled with what is read."""
    if type(count) is not int or not 0 <= count * dtype.itemsize <= most:
        raise Refused(f"it claims a tensor of {count} elements, more than the file has bytes")
    flat = torch.empty(count, dtype=dtype)
    if read is not None and count:
        _copy(flat, read())
    return flat


def _same(flat: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if flat.dtype is not dtype or flat.numel() != count:
        raise Refused("it has one storage with two dtypes or lengths")
    return flat


def _fill(flat: Tensor, file: BinaryIO) -> None:
    if int.from_bytes(file.read(8), "little") != flat.numel():
        raise Refused("it has a storage of another length than its tensors claim")
    if flat.numel():
        _copy(flat, file.read(flat.numel() * flat.dtype.itemsize))


def _copy(flat: Tensor, data: bytes) -> None:
    """Fills a tensor; torch aligns its memory, which bytes in a file need not be."""
    if len(data) != flat.numel() * flat.dtype.itemsize:
        raise Refused(f"a tensor of {flat.numel()} elements has {len(data)} bytes")
    flat.view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
