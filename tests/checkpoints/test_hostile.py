"""Nothing in a file is executed, and nothing in it is believed: what it claims is compared with what is there."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnv3_fast.checkpoints import load_into, read_checkpoint
from mnv3_fast.checkpoints.makers import MAKERS
from mnv3_fast.checkpoints.unpickler import Unpickler
from mnv3_fast.checkpoints.values import Placeholder
from mnv3_fast.models.variants import VARIANTS, build
from tests.checkpoints.hostile import HOSTILE, beside_weights, legacy_of, name, text, zip_of

CARRIERS = {"zip": zip_of, "legacy": legacy_of}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_is_executed(kind: str, carrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    trace, file = tmp_path / f"trace_{carrier}", tmp_path / "file.pth"
    CARRIERS[carrier](beside_weights(HOSTILE[kind](trace)), file)
    zip_of(b"\x80\x02}.", tmp_path / "harmless.pth")
    assert read_checkpoint(tmp_path / "harmless.pth") == {}  # what reading itself imports is imported here
    modules = set(sys.modules)
    with contextlib.suppress(ValueError):
        read_checkpoint(file)
    with pytest.raises(ValueError, match="checkpoint: "):
        load_into(build(VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]), file)
    assert not trace.exists()
    assert set(sys.modules) == modules
    with contextlib.suppress(Exception):
        torch.load(file, weights_only=False)
    assert trace.exists(), "the file was harmless, the test shows nothing"


def test_an_object_beside_the_weights_becomes_a_placeholder(tmp_path: Path) -> None:
    zip_of(beside_weights(HOSTILE["os.system"](tmp_path / "trace")), tmp_path / "file.pth")
    meta = read_checkpoint(tmp_path / "file.pth")["meta"]
    assert type(meta) is Placeholder and meta.name == "posix.system"
    assert not callable(meta)


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


def test_no_name_that_stands_for_something_comes_from_elsewhere() -> None:
    """The whole list; whoever adds to it has to look at what it lets in."""
    assert sorted(MAKERS) == [
        "__builtin__.set", "_codecs.encode", "builtins.set", "collections.Counter", "collections.OrderedDict",
        "collections.defaultdict", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.dtype", "torch.Size",
        "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    ]  # fmt: skip


class HistoryBuffer:
    """As mmengine has it in its files."""

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)
        self._count = np.int64(7)


def content() -> dict[str, Any]:
    import argparse
    from collections import Counter, OrderedDict, defaultdict

    weights = torch.arange(12.0).view(3, 4)
    return {
        "state_dict": OrderedDict(w=weights, t=weights.t(), part=weights[1:, 2:], h=weights.half(), n=torch.tensor(7)),
        "dtypes": [torch.ones(3).to(d) for d in (torch.bfloat16, torch.uint8, torch.bool, torch.float64, torch.uint16)],
        "parameter": torch.nn.Parameter(weights),
        "empty": torch.empty(0, 5),
        "args": argparse.Namespace(model="mobilenetv3_small_050", lr=0.1),
        "history": HistoryBuffer(),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(1.5),
        "text": np.array(["a", "b"]),
        "plain": [None, True, False, 1, -1, 1 << 40, 1 << 90, 1.5, "ä", b"\x00\xff", (1, 2), {3, 4}, (1, (2,), 3, 4)],
        "kinds": [Counter("aab"), defaultdict(list, a=[1]), torch.Size([1, 2]), torch.float32, torch.device("cpu")],
        "path": Path("a"),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_what_is_read_is_what_was_saved(new: bool, protocol: int, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "file.pth", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    found, wanted = read_checkpoint(tmp_path / "file.pth"), content()
    assert list(found) == list(wanted)
    for key, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value) and found["state_dict"][key].dtype is value.dtype
    for ours, theirs in zip(found["dtypes"], wanted["dtypes"], strict=True):
        assert ours.dtype is theirs.dtype and torch.equal(ours, theirs)
    assert torch.equal(found["parameter"], wanted["parameter"]) and found["empty"].shape == (0, 5)
    assert found["args"].state == {"model": "mobilenetv3_small_050", "lr": 0.1}
    assert found["plain"] == wanted["plain"]
    assert found["kinds"][:3] == wanted["kinds"][:3]
    if protocol < 5:  # in which numpy names another function, which is not on the list
        history = found["history"].state
        assert np.array_equal(history["_log_history"], np.arange(3.0)) and history["_count"] == 7
        for key in ("array", "fortran", "scalar"):
            assert np.array_equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype
    assert isinstance(found["text"], Placeholder) and isinstance(found["path"], Placeholder)


def test_whole_models_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "file.pth")
    with pytest.raises(ValueError, match="an object of the unknown kind torch.nn.modules.linear.Linear, .* state_dict"):
        read_checkpoint(tmp_path / "file.pth")


def test_pickle_alone(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"a": np.ones(3)}))
    with pytest.raises(ValueError, match="it is a pickle, but none of torch.save"):
        read_checkpoint(tmp_path / "file.pth")
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"a": 1, "StructuredToParameterName@@": {}}))
    with pytest.raises(ValueError, match="PaddlePaddle's .pdparams, which cannot be read yet"):
        read_checkpoint(tmp_path / "file.pth")
