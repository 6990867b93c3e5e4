"""Names of parameters in torchvision, timm and mmpretrain, and which of them a state_dict has.

A state_dict of any of them is read into torchvision's names, and written in any of them from there. The three differ in
names alone, but for timm's ``conv_head``, which is a 1x1 convolution where the others have a fully connected layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

FAMILIES = ("torchvision", "timm", "mmpretrain")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")
COUNTER = "num_batches_tracked"
"""Files older than torch 0.4.1 and some converters leave it out; no inference depends on it."""

PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "backbone.")
"""Of DataParallel and averaged models, of torch.compile, of our ImageClassifier, of trainers, of a part of a model."""

STAGES = {15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3), 21: (2, 3, 4, 5, 3, 4)}
"""timm's stages by the number of blocks: large, small, and the deeper large that it calls 150d."""

_BLOCK = r"(expand_conv|depthwise_conv|se|linear_conv)"
_PATTERNS = {
    "torchvision": re.compile(r"features\.\d+\.(block\.|[01]\.\w)"),
    "timm": re.compile(r"(conv_stem\.weight|blocks\.\d+\.\d+\.(conv|conv_\w+|bn\d|se)\.)"),
    "mmpretrain": re.compile(rf"(backbone\.)?layer\d+\.({_BLOCK}|conv|bn)\."),
}


@dataclass(frozen=True)
class Naming:
    """How the entries of a network are named: its family, what stands before each name, and its layers.

    ``layers`` has the parts of each of torchvision's ``features``: ("conv",) of a convolution with norm, else those of
    ("expand", "depthwise", "squeeze", "project") that a block has. ``stages`` are timm's: the indices of all layers but
    the stem. ``inside`` is left out of each name where the names are of a part of a network.
    """

    family: str
    prefix: str
    layers: tuple[tuple[str, ...], ...]
    stages: tuple[tuple[int, int], ...]
    inside: str = ""

    def names(self, family: str | None = None) -> dict[str, str]:
        """The name in a family (this one, with its prefix, unless told) for torchvision's name of every entry.

        In the order of that family's own state_dict. Where the blocks are as many as in none of timm's networks, its
        names count them as one stage.
        """
        prefix, inside = (self.prefix, self.inside) if family is None else ("", "")
        family = self.family if family is None else family
        bare = {"torchvision": self._torchvision, "timm": self._timm, "mmpretrain": self._mmpretrain}[family]()
        return {ours: prefix + theirs.removeprefix(inside) for ours, theirs in bare.items()}

    def _torchvision(self) -> dict[str, str]:
        names = []
        for index, parts in enumerate(self.layers):
            for position, part in enumerate(parts):
                names += _entries(part, _position(index, parts, position))
        names += [f"classifier.{layer}.{entry}" for layer in (0, 3) for entry in AFFINE]
        return {name: name for name in names}

    def _mmpretrain(self) -> dict[str, str]:
        names: dict[str, str] = {}
        roles = {"expand": "expand_conv", "depthwise": "depthwise_conv", "squeeze": "se", "project": "linear_conv"}
        for index, parts in enumerate(self.layers):
            for position, part in enumerate(parts):
                here, there = _position(index, parts, position), f"backbone.layer{index}"
                there = there if part == "conv" else f"{there}.{roles[part]}"
                if part == "squeeze":
                    names |= {f"{here}.fc{i}.{e}": f"{there}.conv{i}.conv.{e}" for i in (1, 2) for e in AFFINE}
                else:
                    names |= _conv(here, f"{there}.conv", f"{there}.bn")
        return names | _head("head.layers.0.fc", "head.layers.1.fc")

    def _timm(self) -> dict[str, str]:
        names = _conv("features.0", "conv_stem", "bn1")
        for index, (parts, (stage, block)) in enumerate(zip(self.layers[1:], self.stages, strict=True), 1):
            there = f"blocks.{stage}.{block}"
            if parts == ("conv",):
                names |= _conv(f"features.{index}", f"{there}.conv", f"{there}.bn1")
                continue
            project = "conv_pwl" if "expand" in parts else "conv_pw"
            convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": project}
            norm = 0
            for position, part in enumerate(parts):
                here = _position(index, parts, position)
                if part == "squeeze":
                    pairs = (("fc1", "conv_reduce"), ("fc2", "conv_expand"))
                    names |= {f"{here}.{a}.{e}": f"{there}.se.{b}.{e}" for a, b in pairs for e in AFFINE}
                else:
                    norm += 1
                    names |= _conv(here, f"{there}.{convs[part]}", f"{there}.bn{norm}")
        return names | _head("conv_head", "classifier")


def naming_of(keys: Iterable[str]) -> Naming | None:
    """Whose names these are, whatever stands before them; None if of none of the families."""
    keys = list(keys)
    prefix = ""
    while keys:
        for family, pattern in _PATTERNS.items():
            if any(pattern.match(key) for key in keys):
                return _naming(family, prefix, keys)
        found = next((p for p in PREFIXES if all(key.startswith(p) for key in keys)), None)
        if found is None:
            return None
        prefix += found
        keys = [key.removeprefix(found) for key in keys]
    return None


def _naming(family: str, prefix: str, keys: list[str]) -> Naming:
    inside = ""
    if family == "mmpretrain" and not any(key.startswith("backbone.") for key in keys):
        inside = "backbone."  # a backbone alone
        keys = [inside + key for key in keys]
    if family == "torchvision":
        layers = _torchvision_layers(keys)
    elif family == "mmpretrain":
        layers = _mmpretrain_layers(keys)
    else:
        return Naming(family, prefix, *_timm_layers(keys))
    return Naming(family, prefix, layers, _stages(layers), inside)


def _torchvision_layers(keys: list[str]) -> tuple[tuple[str, ...], ...]:
    found: dict[int, dict[int, bool]] = {}  # of each layer the positions of a block, and which is squeeze-excite
    for key in keys:
        if match := re.match(r"features\.(\d+)\.(?:block\.(\d+)\.(fc)?)?", key):
            positions = found.setdefault(int(match[1]), {})
            if match[2]:
                positions[int(match[2])] = positions.get(int(match[2]), False) or bool(match[3])
    return _in_order({index: _block(len(blocks), any(blocks.values())) for index, blocks in found.items()})


def _mmpretrain_layers(keys: list[str]) -> tuple[tuple[str, ...], ...]:
    found: dict[int, set[str]] = {}
    for key in keys:
        if match := re.match(rf"backbone\.layer(\d+)\.(?:{_BLOCK}\.)?", key):
            found.setdefault(int(match[1]), set()).add(match[2] or "")
    return _in_order({index: _block(len(parts - {""}), "se" in parts) for index, parts in found.items()})


def _timm_layers(keys: list[str]) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, int], ...]]:
    found: dict[tuple[int, int], set[str]] = {}
    for key in keys:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)\.", key):
            found.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    stages = tuple(sorted(found))
    layers = [("conv",)]
    for stage in stages:
        parts = found[stage]
        convs = len(parts & {"conv_pw", "conv_dw", "conv_pwl"})
        layers.append(_block(convs + ("se" in parts), "se" in parts))
    return tuple(layers), stages


def _block(parts: int, squeeze: bool) -> tuple[str, ...]:
    """What a block of so many parts consists of; none is a convolution with norm."""
    if parts == 0:
        return ("conv",)
    middle = ("depthwise", "squeeze") if squeeze else ("depthwise",)
    return (*(("expand",) if parts > len(middle) + 1 else ()), *middle, "project")


def _in_order(layers: dict[int, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """By index; a layer that is missing is taken for a convolution, and its entries are then found missing."""
    return tuple(layers.get(index, ("conv",)) for index in range(min(max(layers, default=-1) + 1, 1000)))


def _stages(layers: tuple[tuple[str, ...], ...]) -> tuple[tuple[int, int], ...]:
    blocks = sum(parts != ("conv",) for parts in layers[1:])
    tails = max(len(layers) - 1 - blocks, 0)
    counts = (*STAGES.get(blocks, (blocks,)), tails)
    return tuple((stage, block) for stage, count in enumerate(counts) for block in range(count))


def _position(index: int, parts: tuple[str, ...], position: int) -> str:
    return f"features.{index}" if parts == ("conv",) else f"features.{index}.block.{position}"


def _entries(part: str, here: str) -> list[str]:
    if part == "squeeze":
        return [f"{here}.fc{i}.{entry}" for i in (1, 2) for entry in AFFINE]
    return [f"{here}.0.weight", *(f"{here}.1.{entry}" for entry in NORM)]


def _conv(here: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{here}.0.weight": f"{conv}.weight"} | {f"{here}.1.{entry}": f"{norm}.{entry}" for entry in NORM}


def _head(first: str, last: str) -> dict[str, str]:
    pairs = (("classifier.0", first), ("classifier.3", last))
    return {f"{here}.{entry}": f"{there}.{entry}" for here, there in pairs for entry in AFFINE}


def shaped(tensor: Tensor, name: str, family: str) -> Tensor:
    """A tensor under torchvision's name as a family has it: timm's ``conv_head`` is a convolution."""
    if name == "classifier.0.weight":
        if family == "timm" and tensor.dim() == 2:
            return tensor[:, :, None, None]
        if family != "timm" and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
            return tensor[:, :, 0, 0]
    return tensor
