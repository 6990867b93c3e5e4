"""What is wrong with a checkpoint, as far as its tensors and its own words tell.

Eps, padding, the gate's slope, mean and std are in no tensor. They are compared where something says them: our
metadata, timm's arguments or pretrained_cfg, mmengine's configuration, the file's name, the name that the user gives.
Running statistics do not tell them: what a layer sees depends on photos that are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.checkpoints.facts import Facts, differences, facts_of_variant
from mnv3_fast.checkpoints.fitting import recognise
from mnv3_fast.checkpoints.matching import (
    described,
    nearest,
    shapes_of,
    shapes_without_last,
    variant_named,
    variants_like,
)
from mnv3_fast.checkpoints.recognition import Checkpoint, table_variant
from mnv3_fast.models.variants import Variant

CODES = {
    "eps": "BatchNorm's eps is another one than the network's",
    "padding": "TensorFlow's padding instead of the symmetric one, or the other way round",
    "gate-slope": "the slope of squeeze-excite's gate is another one",
    "mean-std": "images are normalised in another way",
    "scaling": "hidden channels follow the width by another rule",
    "shapes": "the tensors are of another network",
    "unexpected": "entries that no such network has",
    "not-finite": "NaN or infinite values",
    "no-tensor": "an entry is no dense tensor of floating-point numbers",
    "untouched-batch-norm": "running statistics as they are before any training: mean 0, variance 1",
    "dead-batch-norm": "channels whose weight or variance is exactly 0",
    "negative-variance": "variances below 0",
}
_FIELDS = {"bn_eps": "eps", "padding": "padding", "gate_slope": "gate-slope", "mean": "mean-std", "std": "mean-std"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: of :data:`CODES`.
        layer: whose, under the checkpoint's own names; "" for the whole network.
        came, wanted: what is there, and what should be.
    """

    code: str
    layer: str
    came: str
    wanted: str


@dataclass(frozen=True)
class Diagnosis:
    """What a checkpoint is taken for, and all that is wrong with it; ``variant`` None if no network has its shapes."""

    family: str
    variant: str | None
    why: str
    findings: tuple[Finding, ...]


def diagnose(checkpoint: Checkpoint, name: str | None = None) -> Diagnosis:
    """Look for faults.

    Args:
        checkpoint: what was opened.
        name: the variant that it should be of.

    Raises:
        ValueError: for an unknown name.
    """
    findings = list(_tensor_findings(checkpoint.state)) + list(_batch_norm_findings(checkpoint))
    known = set(recognise(checkpoint.state).names().values())
    findings += [Finding("unexpected", key, key, "no such entry") for key in checkpoint.state if key not in known]
    named = name or checkpoint.facts.variant
    variant = None if named is None else variant_named(named)
    like = variants_like(checkpoint.torchvision)
    if variant is not None and shapes_of(variant) != shapes_without_last(checkpoint.torchvision):
        why = "it was named" if name else f"by {checkpoint.facts.source}"
        return Diagnosis(checkpoint.family, variant.name, why, (_other(variant, like, checkpoint), *findings))
    if not like:
        finding = Finding("shapes", "", nearest(checkpoint.torchvision), "a MobileNetV3 of the table")
        return Diagnosis(checkpoint.family, None, "no network has its shapes", (finding, *findings))
    found, why = table_variant(checkpoint, name)
    said = _said(checkpoint, name)
    rules = [
        Finding(_FIELDS[field], "", f"{_number(came)} ({said.source})", f"{_number(wanted)} ({found.name})")
        for field, came, wanted in differences(said, facts_of_variant(found))
        if field in _FIELDS
    ]
    return Diagnosis(checkpoint.family, found.name, why, (*rules, *findings))


def _said(checkpoint: Checkpoint, name: str | None) -> Facts:
    """What the file says; where the user names another variant, also what the file's own variant has."""
    facts = checkpoint.facts
    if name is None:
        return facts
    own, why = table_variant(checkpoint)
    if facts.variant is None and not why.startswith("its file"):
        return facts  # a mere guess by family contradicts nothing
    return replace(facts.over(facts_of_variant(own)), source=f"{own.name}, {why}")


def _other(variant: Variant, like: list[Variant], checkpoint: Checkpoint) -> Finding:
    """The tensors are not those of the named variant."""
    state, wanted = shapes_without_last(checkpoint.torchvision), shapes_of(variant)
    key = next(key for key in wanted | state if wanted.get(key) != state.get(key))
    others = [found for found in like if found.width == variant.width and found.scaling != variant.scaling]
    code = "scaling" if others and variant.width != 1 else "shapes"
    came = described(like[0]) if like else nearest(checkpoint.torchvision)
    return Finding(code, recognise(checkpoint.state).names().get(key, key), came, described(variant))


def _tensor_findings(state: Mapping[str, Any]) -> Iterator[Finding]:
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            yield Finding("no-tensor", key, str(value)[:60] if not isinstance(value, Tensor) else "sparse", "a tensor")
        elif not value.is_floating_point():
            if not key.endswith("num_batches_tracked"):
                yield Finding("no-tensor", key, str(value.dtype), "floating-point numbers")
        elif bad := int((~torch.isfinite(value)).sum()):
            yield Finding("not-finite", key, f"{bad} of {value.numel()} values are NaN or infinite", "finite values")


def _batch_norm_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    names, state = recognise(checkpoint.state).names(), checkpoint.torchvision
    for key in state:
        if not key.endswith(".running_var"):
            continue
        layer = names[key].removesuffix(".running_var")
        parts = [state.get(key.replace("running_var", part)) for part in ("running_mean", "running_var", "weight")]
        if any(not isinstance(part, Tensor) or not part.is_floating_point() for part in parts):
            continue
        mean, variance, weight = parts
        total = variance.numel()
        if bool((mean == 0).all()) and bool((variance == 1).all()):
            yield Finding("untouched-batch-norm", layer, "running mean 0 and variance 1", "statistics of a training")
        if dead := int((weight == 0).sum()):
            yield Finding("dead-batch-norm", layer, f"weight 0 in {dead} of {total} channels", "none of them 0")
        if dead := int((variance == 0).sum()):
            yield Finding("dead-batch-norm", layer, f"variance 0 in {dead} of {total} channels", "above 0")
        if negative := int((variance < 0).sum()):
            yield Finding("negative-variance", layer, f"{negative} of {total} variances below 0", "0 or above")


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
