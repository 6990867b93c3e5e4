"""Checkpoints into the names of another library, with a certificate: both libraries' networks give the same.

A file is written beside its place, read again, loaded into the network of the library that it is for, and compared with
the network that the source is of; then it is put in its place. Whatever fails, nothing has been written.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mnv3_fast.checkpoints.facts import metadata_of
from mnv3_fast.checkpoints.files import OURS, read_checkpoint, state_of
from mnv3_fast.checkpoints.fitting import fitted, from_torchvision, recognise
from mnv3_fast.checkpoints.matching import classes_in, described, variant_named, variants_like
from mnv3_fast.checkpoints.recognition import DOUBT, Checkpoint, chosen_variant
from mnv3_fast.models.variants import Variant, build
from mnv3_fast.testing.parity import parity_images
from mnv3_fast.testing.tolerance import relative_error
from mnv3_fast.whole_files import replacing

FORMATS = ("torchvision", "timm", "mmpretrain", "safetensors")
SIZES = ((224, 224), (97, 131))
LIMIT = 2e-6
"""Relative L2 between both networks, in float64, where rounding hides nothing: what is wrong shows."""


class NotEqual(ValueError):
    """Both networks differ, so nothing has been written."""


@dataclass(frozen=True)
class Certificate:
    """What was compared, and the largest error.

    Attributes:
        source, target: the two networks, in words; ``target`` None if only tensors could be compared.
        inputs: the fixed images, in words.
        tensors: how many entries are equal bit by bit, of all.
        max_abs, relative_l2: the largest error over all inputs, None without a target.
    """

    source: str
    target: str | None
    inputs: str
    tensors: int
    max_abs: float | None
    relative_l2: float | None


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        family: whose names it had.
        variant: what it is of, ``why`` it is taken for that.
        target: the variant of the library that it is for.
        notes: what its user has to know.
    """

    family: str
    variant: Variant
    why: str
    target: Variant
    certificate: Certificate
    notes: tuple[str, ...]


def convert(checkpoint: Checkpoint, path: Path, to: str, name: str | None = None) -> Conversion:
    """Write a checkpoint under the names of another library; a file that exists is replaced.

    Args:
        checkpoint: what was opened.
        path: the file; one that ends with ``.safetensors`` is such, every other is as ``torch.save`` writes it.
        to: of :data:`FORMATS`; "safetensors" has torchvision's names and is what :func:`load_checkpoint` builds from.
        name: the variant that it is of, where its shapes are those of several.

    Raises:
        NotEqual: if both networks differ.
        ValueError: if the library has no such network, the file's name does not go with the format, or tensors are not
            finite.
        OSError: if it cannot be written.
    """
    variant, why = chosen_variant(checkpoint, name)
    count = classes_in(checkpoint.torchvision)
    if count is None:
        raise ValueError(f"checkpoint: it is {described(variant)} without its last layer; whole networks are converted")
    _check_path(path, to)
    target = target_of(checkpoint, variant, to)
    network = build(variant, count).eval()
    network.load_state_dict(fitted(checkpoint.state, network.state_dict()))
    state = network.state_dict()
    _check_finite(state)
    family = "torchvision" if to == "safetensors" else to
    renamed = from_torchvision(state, recognise(state), family)
    metadata = metadata_of(variant, _names_of_classes(checkpoint, variant, count))
    notes = tuple(_notes(checkpoint, variant, target, to))
    if DOUBT in why:
        notes = (f"that these are weights of {variant.name} is a guess {why}; --model says what they are", *notes)
    with replacing(path) as beside:
        _write(beside, renamed, metadata, to)
        certificate = _certificate(beside, network, variant, target, to, count)
        if path.suffix == ".safetensors":
            _write(beside, renamed, metadata | {"certificate": json.dumps(asdict(certificate))}, to)
        beside.chmod(0o644)
    return Conversion(checkpoint.family, variant, why, target, certificate, notes)


def target_of(checkpoint: Checkpoint, variant: Variant, to: str) -> Variant:
    """The network of a library that computes the same as a variant, eps apart, which is a parameter everywhere.

    Raises:
        ValueError: if there is none, with the reason and what fits.
    """
    if to == "safetensors":
        return variant
    itself = variant_named(variant.name)  # without what a training was told
    like = [other for other in (itself, *variants_like(checkpoint.torchvision)) if other.family in FORMATS]
    same = [other for other in like if _graph(other) == _graph(variant)]
    found = [other for other in same if other.family == to]
    if found:
        return found[0]
    fit = ", ".join(dict.fromkeys(["safetensors", *(other.family for other in same)]))
    own = [other for other in like if other.family == to]
    if own:
        rules = ", ".join(
            f"{field} {ours!r} instead of {theirs!r}"
            for field, ours, theirs in zip(_GRAPH, _graph(variant), _graph(own[0]), strict=True)
            if ours != theirs
        )
        reason = f"{own[0].name} has its shapes, but another graph: {described(variant)} has {rules}"
    else:
        reason = f"{to} has no network with the shapes of {described(variant)}"
    raise ValueError(f"convert: {reason}; fits: {fit}")


_GRAPH = ("padding", "gate_slope", "activation", "squeeze_activation", "first_skip", "downscale_dropout", "dilations")


def _graph(variant: Variant) -> tuple[Any, ...]:
    """What a variant computes beside its shapes."""
    return (*(getattr(variant, field) for field in _GRAPH[:-1]), tuple(row.dilation for row in variant.blocks))


def _check_path(path: Path, to: str) -> None:
    if to == "safetensors" and path.suffix != ".safetensors":
        raise ValueError(f"convert: {path.name} has to end with .safetensors")
    if to == "mmpretrain" and path.suffix == ".safetensors":
        raise ValueError("convert: mmpretrain reads no safetensors; a name that ends with .pth fits")


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"convert: {len(bad)} tensors have values that are not finite, such as {bad[0]}")


def _names_of_classes(checkpoint: Checkpoint, variant: Variant, count: int) -> tuple[str, ...] | None:
    names = checkpoint.facts.classes
    if names is not None and len(names) == count:
        return names
    return variant.classes() if count in (10, 1000) and variant.num_classes == count else None


def _notes(checkpoint: Checkpoint, variant: Variant, target: Variant, to: str) -> list[str]:
    eps = variant.bn_eps
    kinds = {value.dtype for value in checkpoint.torchvision.values() if value.is_floating_point()}
    others = ", ".join(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    notes = [f"its weights are {others}, written is float32"] if others else []
    if to == "safetensors" or target.bn_eps == eps:
        return notes
    count = classes_in(checkpoint.torchvision)
    outputs = "" if count in (None, 1000) else f", num_classes={count}"
    call = {
        "timm": f"timm.create_model({target.name!r}, bn_eps={eps:g}{outputs})",
        "torchvision": f"{target.name.partition(' ')[0]}(norm_layer=functools.partial(nn.BatchNorm2d, eps={eps:g}))",
        "mmpretrain": f"model = dict(backbone=dict(norm_cfg=dict(type='BN', eps={eps:g})))",
    }[to]
    return [
        *notes,
        f"these weights were trained with eps {eps:g} in BatchNorm, {to}'s default for {target.name} is "
        f"{target.bn_eps:g}: {call}",
    ]


def _write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], to: str) -> None:
    """One file. In torch's own the metadata travel among a state_dict's versions of modules, which no loader minds."""
    state = OrderedDict((key, value.detach().contiguous().clone()) for key, value in state.items())
    classes = json.loads(metadata.get("classes", "null"))
    meta = {} if classes is None else {"CLASSES": classes, "dataset_meta": {"classes": classes}}
    try:
        if path.suffix == ".safetensors":
            save_file(state, path, {"format": "pt", **{OURS + key: value for key, value in metadata.items()}})
            return
        state._metadata = OrderedDict(mnv3_fast=dict(metadata))  # type: ignore[attr-defined]
        torch.save({"state_dict": state, "meta": meta} if to == "mmpretrain" else state, path)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise OSError(f"{path}: {error}") from error


def _certificate(path: Path, network: nn.Module, variant: Variant, target: Variant, to: str, count: int) -> Certificate:
    """Both networks on fixed images, the target's with what the file holds once it is read again.

    Raises:
        NotEqual: if a tensor or the outputs differ.
    """
    state = state_of(read_checkpoint(path))
    again = fitted(state, network.state_dict())
    differing = [key for key, value in network.state_dict().items() if not torch.equal(again[key], value)]
    if differing:
        raise NotEqual(f"convert: {len(differing)} tensors differ from what was read, such as {differing[0]}")
    words, graph = _graph_of(target, to, variant, count)
    source = f"{variant.name}, {_whose(variant)}, eps {variant.bn_eps:g}"
    inputs = f"2 random images each of {', '.join(f'{h} x {w}' for h, w in SIZES)}, float64"
    if graph is None:
        return Certificate(source, None, inputs, len(again), None, None)
    graph.load_state_dict(fitted(state, graph.state_dict()))
    absolute, relative = [], []
    reference, graph = _source_graph(variant, network, count).double(), graph.double().eval()
    with torch.inference_mode():
        for height, width in SIZES:
            images = parity_images(2, height, width, seed=7).double()
            came, wanted = graph(images), reference(images)
            absolute.append((came - wanted).abs().max().item())
            relative.append(relative_error(came, wanted))
    if not max(relative) <= LIMIT:
        raise NotEqual(f"convert: the networks differ by {max(relative):.3g} (relative L2), at most {LIMIT:g} may be")
    return Certificate(source, words, inputs, len(again), max(absolute), max(relative))


def _whose(variant: Variant) -> str:
    """Whose code the graph of a family is."""
    return "timm's own network" if variant.family == "timm" and _timm() is not None else "torchvision's classes"


def _source_graph(variant: Variant, network: nn.Module, count: int) -> nn.Module:
    """The network that the source is of: timm's own if there is timm, else ours."""
    if variant.family != "timm" or _timm() is None:
        return network
    graph = _timm_network(variant, variant.bn_eps, count)
    graph.load_state_dict(fitted(network.state_dict(), graph.state_dict()))
    return graph.eval()


def _graph_of(target: Variant, to: str, variant: Variant, count: int) -> tuple[str, nn.Module | None]:
    """The network that will read the file, in words and as a fresh module; none without timm."""
    eps = variant.bn_eps
    if to == "timm":
        graph = None if _timm() is None else _timm_network(target, eps, count)
        return f"{target.name}, timm's own network, bn_eps={eps:g}", graph
    ours = build(replace(target, bn_eps=eps), count)
    words = {
        "torchvision": "torchvision's classes",
        "mmpretrain": "our graph of mmpretrain's, which is torchvision's by construction",
        "safetensors": "ours, as load_checkpoint builds it",
    }[to]
    return f"{target.name}, {words}, eps {eps:g}", ours


def _timm_network(variant: Variant, eps: float, count: int) -> nn.Module:
    return _timm().create_model(variant.name.partition(".")[0], bn_eps=eps, num_classes=count)


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        return None
    return timm
