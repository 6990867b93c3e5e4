"""The table of variants: tensors, parameters and multiply-adds against what was published, names."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.mobilenetv3 import MobileNetV3

from mnv3_fast.checkpoints import torchvision_state
from mnv3_fast.models.families.torchvision import scaled
from mnv3_fast.models.variants import FAMILIES, VARIANTS, Variant, build, find_variant, make_divisible, variant_of
from tests.models import tables

# Parameters and millions of multiply-adds (convolutions and fully connected layers, one for each weight and place) of
# timm's models at 224, as timm's own models were counted (150d at 256).
TIMM = {
    "mobilenetv3_small_050": (1_593_224, 24.2),
    "mobilenetv3_small_075": (2_041_872, 43.4),
    "mobilenetv3_small_100": (2_542_856, 56.5),
    "mobilenetv3_large_075": (3_993_528, 154.6),
    "mobilenetv3_large_100": (5_483_032, 216.6),
    "mobilenetv3_large_150d": (14_622_320, 1010),
    "mobilenetv3_rw": (5_479_918, 216.6),
    "tf_mobilenetv3_large_075": (3_993_528, 154.6),
    "tf_mobilenetv3_large_100": (5_483_032, 216.6),
    "tf_mobilenetv3_large_minimal_100": (3_924_288, 209.1),
    "tf_mobilenetv3_small_075": (2_041_872, 43.4),
    "tf_mobilenetv3_small_100": (2_542_856, 56.5),
    "tf_mobilenetv3_small_minimal_100": (2_044_736, 52.3),
}
MMPRETRAIN = {
    "mobilenet-v3-small-050_8xb128_in1k": (1_593_224, 24.2),
    "mobilenet-v3-small-075_8xb128_in1k": (2_041_872, 43.4),
    "mobilenet-v3-small_8xb128_in1k": (2_542_856, 56.5),
    "mobilenet-v3-large_8xb128_in1k": (5_483_032, 216.6),
}
TORCHVISION = {
    ("large", 1.0, False, False): (5_483_032, 216.6),
    ("small", 1.0, False, False): (2_542_856, 56.5),
    ("large", 0.35, False, False): (997_064, 35.3),
    ("large", 0.5, False, False): (1_734_576, 65.0),
    ("large", 0.75, False, False): (3_377_576, 140.0),
    ("large", 1.25, False, False): (8_164_744, 343.5),
    ("small", 0.35, False, False): (558_744, 11.2),
    ("small", 0.5, False, False): (917_264, 19.0),
    ("small", 0.75, False, False): (1_653_920, 39.1),
    ("small", 1.25, False, False): (3_644_912, 88.2),
    ("large", 1.0, True, False): (2_569_352, 182.3),
    ("small", 1.0, True, False): (1_099_672, 43.8),
    ("large", 1.0, False, True): (5_483_032, 354.8),
    ("small", 1.0, False, True): (2_542_856, 106.5),
}
KERAS = {  # those of timm's conversions
    "keras_mobilenetv3_large_100": (5_483_032, 216.6),
    "keras_mobilenetv3_large_075": (3_993_528, 154.6),
    "keras_mobilenetv3_large_minimalistic_100": (3_924_288, 209.1),
    "keras_mobilenetv3_small_100": (2_542_856, 56.5),
    "keras_mobilenetv3_small_075": (2_041_872, 43.4),
    "keras_mobilenetv3_small_minimalistic_100": (2_044_736, 52.3),
}


@cache
def on_meta(variant: Variant) -> MobileNetV3:
    """A network without memory."""
    with torch.device("meta"):
        return build(variant)


def counted(model: nn.Module, size: int = 224) -> tuple[int, int]:
    """Parameters, and multiply-adds by what each convolution and fully connected layer does in a forward pass."""
    macs = 0

    def count(module: nn.Module, _: tuple, output: torch.Tensor) -> None:
        nonlocal macs
        macs += module.weight.numel() * (output[0, 0].numel() if output.dim() == 4 else 1)

    model = copy.deepcopy(model).to_empty(device="cpu").eval()
    for tensor in model.state_dict().values():
        tensor.zero_()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), macs


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_multiply_adds(name: str) -> None:
    """As published or counted in the original's own code, and as the tables written out by hand have them."""
    parameters, macs = counted(on_meta(VARIANTS[name]), 256 if "150d" in name else 224)
    expected = (TIMM | MMPRETRAIN | KERAS).get(name)
    if expected is not None:
        assert (parameters, round(macs / 1e6, 0 if "150d" in name else 1)) == expected
    if name in tables.NETS:
        assert (parameters, macs) == (tables.parameters(tables.NETS[name]), tables.multiply_adds(tables.NETS[name]))
    assert expected is not None or name in tables.NETS


@pytest.mark.parametrize(("size", "width", "reduced", "dilated"), TORCHVISION)
def test_torchvision(size: str, width: float, reduced: bool, dilated: bool) -> None:
    """Counts, and every tensor and module of torchvision's own builder."""
    parameters, macs = TORCHVISION[size, width, reduced, dilated]
    found = on_meta(scaled(find_variant(size), width, reduced, dilated))
    count, operations = counted(found)
    assert (count, round(operations / 1e6, 1)) == (parameters, macs)
    builder = getattr(torchvision.models, f"mobilenet_v3_{size}")
    with torch.device("meta"):
        expected = builder(width_mult=width, reduced_tail=reduced, dilated=dilated)
    assert shapes(found) == shapes(expected)
    assert repr(found) == repr(expected)
    if not (reduced or dilated):
        assert shapes(found) == list(tables.tensors(tables.torchvision_net(size, width)))


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_same_seed_gives_torchvisions_weights(size: str) -> None:
    torch.manual_seed(3)
    expected = getattr(torchvision.models, f"mobilenet_v3_{size}")().state_dict()
    torch.manual_seed(3)
    found = build(find_variant(size)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", tables.NETS)
def test_tensors_are_those_of_the_tables(name: str) -> None:
    """Names, order and shapes, as written out by hand."""
    net, model = tables.NETS[name], on_meta(VARIANTS[name])
    assert shapes(model) == list(tables.tensors(net))
    norms = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {net.eps}


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.family == "paddle"])
def test_published_parameters_of_paddle(name: str) -> None:
    """Two decimals of a million are published; how they were counted is not."""
    row = VARIANTS[name]
    assert row.published is not None
    assert float(row.published[0].split()[0]) == pytest.approx(tables.parameters(tables.NETS[name]) / 1e6, abs=0.011)


@pytest.mark.parametrize("name", MMPRETRAIN)
def test_published_flops_of_mmpretrain(name: str) -> None:
    """The page's FLOPs are multiply-adds of convolutions and fully connected layers; those of large (0.23 G) are met
    only if two operations are added for each value that leaves a BatchNorm (225.4 M)."""
    outputs, pixels = 0, 112 * 112
    if "large" in name:
        outputs = tables.NETS[name].stem * pixels
        for block in tables.NETS[name].blocks:
            outputs += block.expands * block.hidden * pixels
            pixels //= block.stride**2
            outputs += (block.hidden + block.outputs) * pixels
        outputs += tables.NETS[name].tail * pixels
    parameters, macs = MMPRETRAIN[name]
    published = f"{parameters / 1e6:.2f} M", f"{(macs * 1e6 + 2 * outputs) / 1e9:.2f} G"
    assert published == VARIANTS[name].published


@pytest.mark.parametrize("name", TIMM)
def test_tensors_are_those_of_timm(name: str) -> None:
    """timm's state_dict lists the same tensors in the same order; its head is a convolution, its norms are alike."""
    with torch.device("meta"):
        theirs = timm.create_model(name)
    ours = on_meta(VARIANTS[name])
    expected = [shape[:2] if key.startswith("conv_head") else shape for key, shape in shapes(theirs)]
    assert [shape for _, shape in shapes(ours)] == expected
    norms = [
        [(m.num_features, m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for model in (ours, theirs)
    ]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.family == "mmpretrain"])
def test_a_checkpoint_of_mmpretrain_fits(name: str) -> None:
    """Keys, shapes and order as mmpretrain's classifiers have them: each tensor, full of its own number, is found at
    its place in the network, and none is left over."""
    net = tables.NETS[name]
    names = [key for key, _ in tables.tensors(net)]
    state = {key: torch.full(shape, i / 2) for i, (key, shape) in enumerate(tables.tensors(net, "mmpretrain"))}
    model = build(VARIANTS[name])
    model.load_state_dict(torchvision_state(state, model))
    assert list(model.state_dict()) == names
    for (key, tensor), (theirs, expected) in zip(model.state_dict().items(), state.items(), strict=True):
        assert torch.equal(tensor, expected.to(tensor.dtype)), f"{key} is not {theirs}"


def test_norms_are_those_of_the_family() -> None:
    wanted = {
        "mobilenet-v3-small-050_8xb128_in1k": (1e-5, 0.1), "mobilenet-v3-large_8xb128_in1k": (1e-3, 0.01),
        "keras_mobilenetv3_small_100": (1e-3, 0.001), "MobileNetV3_small_x1_0": (1e-5, 0.1), "large": (1e-3, 0.01),
    }  # fmt: skip
    for name, norm in wanted.items():
        modules = on_meta(find_variant(name)).modules()
        assert {(m.eps, m.momentum) for m in modules if isinstance(m, nn.BatchNorm2d)} == {norm}


def test_names() -> None:
    known = [name for row in VARIANTS.values() for name in (row.name, *row.aliases)]
    known += [weights.alias for row in VARIANTS.values() for weights in row.weights if weights.alias]
    assert len(set(known)) == len(known)
    for row in VARIANTS.values():
        assert all(find_variant(name) is row for name in (row.name, *row.aliases))
        assert all(find_variant(weights.alias or row.name).family == row.family for weights in row.weights)
    assert {row.family for row in VARIANTS.values()} == set(FAMILIES)
    assert find_variant("MobileNetV3Large") is VARIANTS["keras_mobilenetv3_large_100"]
    assert find_variant("mobilenet-v3-small-050_3rdparty_in1k") is VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]
    with pytest.raises(ValueError, match=r"unknown model 'mobilnet_v3_larg'; like it are mobilenet_v3_large, "):
        find_variant("mobilnet_v3_larg")
    with pytest.raises(
        ValueError, match="unknown model 'resnet50'; there are mobilenet_v3_large, mobilenet_v3_small, "
    ):
        find_variant("resnet50")


def test_a_tag_brings_its_preprocessing_and_classes() -> None:
    second = find_variant("mobilenet_v3_large.IMAGENET1K_V2")
    assert (second.preprocessing.resize, VARIANTS["mobilenet_v3_large"].preprocessing.resize) == (232, 256)
    assert find_variant(second.name) == second
    assert find_variant("large.IMAGENET1K_V2") == second
    many = find_variant("mobilenetv3_large_100_miil_in21k")
    assert (many.name, many.num_classes) == ("mobilenetv3_large_100.miil_in21k", 11221)
    assert many.classes()[11220] == "class 11220"
    assert on_meta(many).classifier[3].out_features == 11221
    assert find_variant("mobilenetv3_small_100.lamb_in1k") is VARIANTS["mobilenetv3_small_100"]
    tags = "DEFAULT, ra_in1k, ra4_e3600_r224_in1k, miil_in21k_ft_in1k, miil_in21k"
    with pytest.raises(ValueError, match=f"weights 'ra' do not exist for mobilenetv3_large_100; there are {tags}$"):
        find_variant("mobilenetv3_large_100.ra")
    with pytest.raises(ValueError, match="weights 'DEFAULT' do not exist for mobilenetv3_large_075; there are none"):
        VARIANTS["mobilenetv3_large_075"].weights_of("DEFAULT")


def test_variant_of_a_path() -> None:
    small = VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]
    lazy = "mmpretrain/configs/mobilenet_v3/mobilenet_v3_small_050_8xb128_in1k.py"
    for name in (small.name, Path("configs") / f"{small.name}.py", f"C:\\configs\\{small.aliases[0]}.py", lazy):
        assert variant_of(name) is small
    assert variant_of("mobilenet-v3-large_8xb32_in1k.py") is VARIANTS["mobilenet-v3-large_8xb128_in1k"]
    with pytest.raises(TypeError, match="train: config must be a name or a path, got int"):
        variant_of(3, "train")  # type: ignore[arg-type]


def test_other_classes_and_dropout() -> None:
    for name in ("mobilenet-v3-small-050_8xb128_in1k", "MobileNetV3_small_x0_35"):
        model = build(VARIANTS[name], num_classes=7, dropout=0.5)
        assert model.classifier[3].out_features == 7
        assert model.classifier[2].p == 0.5


@pytest.mark.parametrize("name", ["MobileNetV3_small_x0_35", "mobilenetv3_large_150d", "tf_mobilenetv3_small_100"])
def test_what_is_built_anew_is_drawn_as_torchvision_draws_it(name: str) -> None:
    """Kaiming's normal by outputs for convolutions, N(0, 0.01) for fully connected layers."""
    model = build(VARIANTS[name])
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            fan_out = module.weight[:, 0].numel() if module.groups == 1 else module.weight.numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
            assert module.bias is None or not module.bias.any()


def test_settings_of_torchvision() -> None:
    row = find_variant("small")
    assert scaled(row) is row
    assert scaled(row, dilated=True).weights == row.weights
    assert scaled(row, 0.5).weights == scaled(row, reduced_tail=True).weights == ()
    for width in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="width_mult must be greater than 0, got"):
            scaled(row, width)


@pytest.mark.parametrize(("channels", "expected"), [(36, 40), (18, 24), (8, 8), (3, 8), (58.67, 56), (12, 16)])
def test_make_divisible(channels: float, expected: int) -> None:
    assert make_divisible(channels) == expected
