"""What a file says of its network beside the tensors: in our metadata, or as timm and mmpretrain write it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mnv3_fast.checkpoints.matching import variant_named
from mnv3_fast.checkpoints.values import contents
from mnv3_fast.models.variants import Variant

CHOICES = {"padding": ("symmetric", "same"), "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box")}
POSITIVE = ("gate_slope", "std", "resize", "crop")
"""What no network and no preprocessing can be made with, if it is 0."""
METADATA = "its metadata"
MOST_TEXT = 100_000
"""Of a configuration: Python's parser is not made for hostile text of any length."""


@dataclass(frozen=True)
class Facts:
    """What is said; None where nothing is. ``mean`` and ``std`` are of values from 0 to 255.

    Attributes:
        source: where it is said, in words: ``METADATA`` where it is ours; "" if nowhere.
        variant: the name of a variant of the table.
    """

    source: str = ""
    variant: str | None = None
    bn_eps: float | None = None
    bn_momentum: float | None = None
    padding: str | None = None
    gate_slope: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    classes: tuple[str, ...] | None = None

    def over(self, others: Facts) -> Facts:
        """These, and where nothing is said the others'."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(others, **{name: value for name, value in said.items() if value is not None})


COMPARED = ("bn_eps", "bn_momentum", "padding", "gate_slope", "mean", "std", "resize", "crop", "interpolation")
"""What a variant says, too."""


def metadata_of(variant: Variant, classes: tuple[str, ...] | None) -> dict[str, str]:
    """What is not in a network's tensors, as text."""
    facts = replace(facts_of_variant(variant), classes=classes)
    return {
        field.name: json.dumps(getattr(facts, field.name), ensure_ascii=False)
        for field in fields(Facts)
        if field.name != "source" and getattr(facts, field.name) is not None
    }


def facts_of_variant(variant: Variant) -> Facts:
    """What the table says of a variant."""
    how = variant.preprocessing
    return Facts(
        "the table", variant.name, variant.bn_eps, variant.bn_momentum, variant.padding, variant.gate_slope,
        tuple(how.mean), tuple(how.std), how.resize, how.crop, how.interpolation,
    )  # fmt: skip


def adjusted(variant: Variant, facts: Facts) -> Variant:
    """A variant with what a file says that its network was trained with."""
    how = variant.preprocessing
    names = ("resize", "crop", "interpolation", "mean", "std")
    return replace(
        variant,
        bn_eps=variant.bn_eps if facts.bn_eps is None else facts.bn_eps,
        bn_momentum=variant.bn_momentum if facts.bn_momentum is None else facts.bn_momentum,
        padding=facts.padding or variant.padding,
        gate_slope=variant.gate_slope if facts.gate_slope is None else facts.gate_slope,
        preprocessing=replace(how, **{name: value for name in names if (value := getattr(facts, name)) is not None}),
    )


def facts_of(checkpoint: Mapping[str, Any], path: Path | None = None) -> Facts:
    """What a checkpoint's dictionary says; of a file of timm's also the ``config.json`` beside it.

    Raises:
        ValueError: if metadata of ours cannot be read.
    """
    ours = _our_metadata(checkpoint)
    if ours is not None:
        return _from_metadata(ours)
    meta = contents(checkpoint.get("meta"))
    if isinstance(meta.get("variant"), str):  # as our training writes it
        found = Facts("its meta", variant=meta["variant"])
    elif isinstance(meta.get("cfg"), str):
        found = _from_mmpretrain(meta["cfg"])
    else:
        found = _from_timm(checkpoint, path)
    names = meta.get("classes"), meta.get("CLASSES"), contents(meta.get("dataset_meta")).get("classes"), found.classes
    return replace(found, classes=next((texts for name in names if (texts := _texts(name))), None))


def classes_of(checkpoint: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint's dictionary has, if they are as many as the model has."""
    names = facts_of(checkpoint).classes
    return names if names is not None and len(names) == count else None


def differences(facts: Facts, others: Facts) -> list[tuple[str, Any, Any]]:
    """What both say, and differently: the name, what came, what the others have."""
    triples = [(name, getattr(facts, name), getattr(others, name)) for name in COMPARED]
    return [triple for triple in triples if None not in triple[1:] and not _alike(*triple[1:])]


def _alike(came: Any, wanted: Any) -> bool:
    """Equal, numbers to the third digit: 58.4 and 58.395 are the same standard deviation."""
    if isinstance(wanted, tuple):
        return len(came) == len(wanted) and all(_alike(a, b) for a, b in zip(came, wanted, strict=True))
    if isinstance(wanted, float):
        return math.isclose(came, wanted, rel_tol=2e-3, abs_tol=1e-9)
    return came == wanted


def _our_metadata(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """In safetensors' metadata, or among a state_dict's versions of modules, which load_state_dict leaves alone."""
    if isinstance(checkpoint.get("mnv3_fast"), dict):
        return checkpoint["mnv3_fast"]
    for state in (checkpoint, checkpoint.get("state_dict")):
        found = contents(getattr(state, "_metadata", None)).get("mnv3_fast")
        if isinstance(found, dict):
            return found
    return None


def _from_metadata(ours: Mapping[str, Any]) -> Facts:
    kinds = {"variant": str, "padding": str, "interpolation": str, "resize": int, "crop": int}
    found: dict[str, Any] = {}
    for field in fields(Facts):
        if field.name == "source" or field.name not in ours:
            continue
        text = ours[field.name]
        try:
            value = json.loads(text)
            if field.name == "classes":
                value = _texts(value)
            elif field.name in ("mean", "std"):
                value = _numbers(value)
            else:
                value = _of_kind(value, kinds.get(field.name, float))
            if field.name in CHOICES and value not in CHOICES[field.name]:
                value = None
            if field.name in POSITIVE and not all(v > 0 for v in (value if isinstance(value, tuple) else (value,))):
                value = None
            if field.name == "variant":
                variant_named(value)
        except (TypeError, ValueError, RecursionError):
            value = None
        if value is None:
            raise ValueError(f"checkpoint: its metadata has {field.name} = {str(text)[:80]!r}, which is none")
        found[field.name] = value
    return Facts(METADATA, **found)


def _from_timm(checkpoint: Mapping[str, Any], path: Path | None) -> Facts:
    """``arch`` and ``args`` of its training, ``pretrained_cfg``, and the ``config.json`` of the hub."""
    arguments = contents(checkpoint.get("args"))
    config: Any = {}
    beside = path.parent / "config.json" if path is not None else None
    if beside is not None and beside.is_file() and beside.stat().st_size <= MOST_TEXT:
        try:
            config = contents(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, RecursionError):
            config = {}
    pretrained = contents(checkpoint.get("pretrained_cfg")) or contents(config.get("pretrained_cfg"))
    names = (checkpoint.get("arch"), arguments.get("model"), config.get("architecture"), pretrained.get("architecture"))
    name = next((found for found in names if isinstance(found, str)), None)
    tag = pretrained.get("tag")
    crop, share = _last(pretrained.get("input_size")), _of_kind(pretrained.get("crop_pct"), float)
    found = Facts(
        variant=_known(f"{name}.{tag}") or _known(name),
        bn_eps=_of_kind(arguments.get("bn_eps"), float),
        bn_momentum=_of_kind(arguments.get("bn_momentum"), float),
        mean=_times_255(arguments.get("mean") or pretrained.get("mean")),
        std=_times_255(arguments.get("std") or pretrained.get("std")),
        interpolation=_of_kind(arguments.get("interpolation") or pretrained.get("interpolation") or None, str),
        crop=crop,
        resize=int(crop / share) if crop and share else None,
        classes=_texts(config.get("label_names") or pretrained.get("label_names")),
    )
    return replace(found, source="the arguments or pretrained_cfg of timm") if found != Facts() else found


def _from_mmpretrain(text: str) -> Facts:
    """The configuration that mmengine keeps as text; it is taken apart, not run."""
    model = _literal(text).get("model")
    backbone = contents(contents(model).get("backbone"))
    norm = contents(backbone.get("norm_cfg"))
    images = contents(_literal(text).get("data_preprocessor")) or contents(contents(model).get("data_preprocessor"))
    arch = backbone.get("arch")
    name = f"mobilenet-v3-{arch.replace('_', '-')}_8xb128_in1k" if isinstance(arch, str) else None
    if contents(contents(model).get("head")).get("num_classes") == 10:
        name = "mobilenet-v3-small_8xb16_cifar10"
    return Facts(
        "mmengine's configuration",
        variant=_known(name),
        bn_eps=_of_kind(norm.get("eps"), float),
        bn_momentum=_of_kind(norm.get("momentum"), float),
        mean=_numbers(images.get("mean")),
        std=_numbers(images.get("std")),
    )


def _literal(text: str) -> dict[str, Any]:
    """The assignments of a configuration in Python: numbers, text, lists, and dict(...)."""
    if len(text) > MOST_TEXT:
        return {}
    try:
        tree = ast.parse(text)
        return {
            node.targets[0].id: _value(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return None


def _known(name: str | None) -> str | None:
    """The name, if the table has it."""
    try:
        return None if name is None else variant_named(name).name
    except ValueError:
        return None


def _of_kind(value: Any, kind: type) -> Any:
    """A value of a kind, else None; whole numbers are floats, too. Numbers are finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return None
    return kind(value) if kind is str or 0 <= value < 1 << 31 else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    good = isinstance(value, (list, tuple)) and len(value) == 3 and all(_of_kind(v, float) is not None for v in value)
    return tuple(float(v) for v in value) if good else None


def _times_255(value: Any) -> tuple[float, ...] | None:
    numbers = _numbers(value)
    return None if numbers is None else tuple(255 * number for number in numbers)


def _texts(value: Any) -> tuple[str, ...] | None:
    good = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return tuple(value) if good else None


def _last(value: Any) -> int | None:
    return _of_kind(value[-1], int) if isinstance(value, (list, tuple)) and value else None
