"""Nothing in a file is executed, and what is read of it is what was saved."""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from mnv3_fast.checkpoints import load_into, read_checkpoint
from mnv3_fast.checkpoints.facts import facts_of
from mnv3_fast.checkpoints.makers import MAKERS
from mnv3_fast.checkpoints.values import Name, Placeholder
from mnv3_fast.models.variants import VARIANTS, build
from tests.checkpoints.hostile import HOSTILE, beside_weights, legacy_of, zip_of

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
        self.statistics_methods = {"mean": np.mean}


class ConfigDict(dict):
    """As mmengine's, which pickles as a call with a plain dictionary."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ConfigDict, (dict(self.items()),)


class Items(dict):
    """A dictionary of a class, with items and attributes."""


def content() -> dict[str, Any]:
    import argparse
    from collections import Counter, OrderedDict, defaultdict

    weights = torch.arange(12.0).view(3, 4)
    noted = [torch.arange(3.0), torch.nn.Parameter(torch.arange(2.0))]
    for tensor in noted:
        tensor.note = HistoryBuffer()  # type: ignore[attr-defined]
    return {
        "noted": noted,
        "state_dict": OrderedDict(w=weights, t=weights.t(), part=weights[1:, 2:], h=weights.half(), n=torch.tensor(7)),
        "dtypes": [torch.ones(3).to(d) for d in (torch.bfloat16, torch.uint8, torch.bool, torch.float64, torch.uint16)],
        "parameter": torch.nn.Parameter(weights),
        "empty": torch.empty(0, 5),
        "args": argparse.Namespace(model="mobilenetv3_small_050", lr=0.1),
        "history": HistoryBuffer(),
        "config": [ConfigDict(lr=0.1), Items(a=1)],
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
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found["noted"], wanted["noted"], strict=True))
    assert found["args"].state == {"model": "mobilenetv3_small_050", "lr": 0.1}
    assert found["plain"] == wanted["plain"]
    assert found["kinds"][:3] == wanted["kinds"][:3]
    assert found["config"][0].arguments == ({"lr": 0.1},) and found["config"][1].entries == {"a": 1}
    assert isinstance(found["history"].state["statistics_methods"]["mean"], Name)
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


def test_whole_models_inside_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(1, 1), "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="its 'model' is an object of the unknown kind torch.nn.modules.linear.Linear"):
        load_into(build(VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]), tmp_path / "file.pth")


DEEP = {
    "brackets": "[" * 90_000,
    "signs": "-" * 90_000 + "1",
    "calls": "dict(a=" * 12_000,
    "lists": "[" * 80 + "]" * 80,
}


@pytest.mark.parametrize("kind", DEEP)
def test_configurations_that_are_deep(kind: str) -> None:
    """Python's parser gives up, and so do we; nothing is known then."""
    assert facts_of({"meta": {"cfg": f"model = {DEEP[kind]}"}}).bn_eps is None
    assert facts_of({"meta": {"cfg": "model = dict(backbone=dict(norm_cfg=dict(eps=0.5)))"}}).bn_eps == 0.5


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 40), marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_pickles_with_wrong_bytes(carrier: str, seeds: range, tmp_path: Path) -> None:
    """They are read, or refused with a ValueError; nothing else happens."""
    saved, path, refused = io.BytesIO(), tmp_path / "file.pth", 0
    torch.save(content(), saved)
    with zipfile.ZipFile(saved) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    pickled = entries.pop("data.pkl")
    entries = {name: data for name, data in entries.items() if name.startswith("data/")}
    for seed in seeds:
        random = Random(seed)
        for _ in range(100):
            changed = bytearray(pickled)
            for _ in range(random.randint(1, 4)):
                changed[random.randrange(len(changed))] = random.randrange(256)
            if carrier == "zip":
                zip_of(bytes(changed), path, entries)
            else:
                legacy_of(bytes(changed), path)
            try:
                read_checkpoint(path)
            except ValueError:
                refused += 1
    assert refused > 30 * len(seeds)


def test_pickle_alone(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"a": np.ones(3)}))
    with pytest.raises(ValueError, match="it is a pickle, but none of torch.save"):
        read_checkpoint(tmp_path / "file.pth")
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"a": 1, "StructuredToParameterName@@": {}}))
    with pytest.raises(ValueError, match="PaddlePaddle's .pdparams, which cannot be read yet"):
        read_checkpoint(tmp_path / "file.pth")
