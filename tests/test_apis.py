"""mmpretrain's names: its page's snippets with only the import changed, and what each function promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision.transforms import functional as transforms

from mnv3_fast.apis import ImageClassifier, inference_model, init_model
from mnv3_fast.cli.models import classifier_of
from mnv3_fast.explanation import explain
from mnv3_fast.models.variants import VARIANTS, build
from mnv3_fast.testing.parity import parity_images, randomize_
from mnv3_fast.testing.tolerance import assert_net_equal
from tests.checkpoints.test_checkpoints import mmpretrain_file

NAME = "mobilenet-v3-small-050_8xb128_in1k"
URL = (
    "https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/"
    "mobilenet-v3-small-050_3rdparty_in1k_20221114-e0b86be1.pth"
)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page supposes it: demo/demo.JPEG, and the checkpoint already downloaded (ours: random)."""
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    mmpretrain_file(randomize_(build(VARIANTS[NAME]), 0), hub / URL.rsplit("/", 1)[1])
    (tmp_path / "demo").mkdir()
    Image.fromarray(data.cat()).save(tmp_path / "demo" / "demo.JPEG")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_predicts_an_image(page: Path) -> None:
    from mnv3_fast.apis import inference_model, init_model

    model = init_model('configs/mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py', 'https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/mobilenet-v3-small-050_3rdparty_in1k_20221114-e0b86be1.pth')  # fmt: skip
    predict = inference_model(model, 'demo/demo.JPEG')  # fmt: skip
    assert predict['pred_class'] == f"name {predict['pred_label']}"  # fmt: skip
    assert 0 < predict['pred_score'] <= 1  # fmt: skip


def test_the_page_uses_a_model(page: Path) -> None:
    import torch

    from mnv3_fast.apis import init_model

    model = init_model('configs/mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py', 'https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/mobilenet-v3-small-050_3rdparty_in1k_20221114-e0b86be1.pth')  # fmt: skip
    inputs = torch.rand(1, 3, 224, 224).to(model.data_preprocessor.device)
    out = model(inputs)
    assert out.shape == torch.Size([1, 1000])
    outs = model.extract_feat(inputs)
    assert outs[0].shape == torch.Size([1, 288])


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    model = init_model(NAME)
    randomize_(model.network, 1)
    return model


def reference(model: ImageClassifier, photo: Image.Image) -> torch.Tensor:
    """What torchvision's own functions make of a photo, in float64."""
    photo = transforms.resize(photo, [256], interpolation=transforms.InterpolationMode.BICUBIC)
    x = transforms.pil_to_tensor(transforms.center_crop(photo, [224])).double()
    how = model.variant.preprocessing
    x = (x - torch.tensor(how.mean).double().view(3, 1, 1)) / torch.tensor(how.std).double().view(3, 1, 1)
    network = build(model.variant).eval()
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        return network.double()(x[None]).softmax(1)[0]


@pytest.mark.parametrize("kind", ["path", "PIL", "array", "gray array", "RGBA file"])
def test_inference_model(kind: str, classifier: ImageClassifier, tmp_path: Path) -> None:
    photo = Image.fromarray(data.astronaut())
    image: Any = photo
    if kind == "path":
        photo.save(tmp_path / "photo.png")
        image = tmp_path / "photo.png"
    elif kind == "array":
        image = np.asarray(photo)[:, :, ::-1]  # BGR, as OpenCV reads
    elif kind == "gray array":
        image = np.asarray(photo.convert("L"))
        photo = photo.convert("L").convert("RGB")
    elif kind == "RGBA file":
        photo.convert("RGBA").save(tmp_path / "photo.png")
        image = str(tmp_path / "photo.png")
    expected = reference(classifier, photo)
    found = inference_model(classifier, image)
    assert set(found) == {"pred_scores", "pred_label", "pred_score", "pred_class"}
    assert isinstance(found["pred_scores"], np.ndarray)
    assert found["pred_scores"].shape == (1000,)
    assert found["pred_scores"].dtype == np.float32
    np.testing.assert_allclose(found["pred_scores"], expected.numpy(), rtol=2e-4, atol=1e-8)
    assert found["pred_label"] == int(expected.argmax())
    assert found["pred_score"] == found["pred_scores"].max()
    assert found["pred_class"] == classifier.classes[found["pred_label"]]


def test_another_image_or_channel_order_would_show(classifier: ImageClassifier) -> None:
    scores = inference_model(classifier, data.astronaut())["pred_scores"]  # RGB taken for BGR
    assert not np.allclose(scores, reference(classifier, Image.fromarray(data.astronaut())).numpy(), rtol=0.05)


def test_classes_are_imagenets() -> None:
    model = init_model("mobilenet-v3-large_8xb128_in1k")
    assert model.classes[0] == "tench"
    assert model.classes[281] == "tabby"
    assert len(model.classes) == 1000


@pytest.mark.parametrize(
    ("stage", "shape"), [("backbone", (2, 288, 7, 7)), ("neck", (2, 288)), ("pre_logits", (2, 1024))]
)
def test_extract_feat(stage: str, shape: tuple[int, ...], classifier: ImageClassifier) -> None:
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        (found,) = classifier.extract_feat(x, stage=stage)
        assert tuple(found.shape) == shape
        features = build(classifier.variant).eval()
        features.load_state_dict(classifier.network.state_dict())
        expected = features.features(x)
        if stage != "backbone":
            expected = expected.mean((2, 3))
        if stage == "pre_logits":
            expected = features.classifier[:-1](expected)
            torch.testing.assert_close(classifier.head[-1](found), classifier(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_runs_fused(classifier: ImageClassifier) -> None:
    assert not explain(classifier, torch.zeros(1, 3, 224, 224)).fallbacks
    assert not classifier.training


@pytest.mark.parametrize("config", [NAME, f"configs/mobilenet_v3/{NAME}.py", Path("a") / f"{NAME}.py", f"x\\{NAME}.py"])
def test_names_of_configs(config: Any) -> None:
    assert init_model(config).variant is VARIANTS[NAME]


def test_cifar() -> None:
    model = init_model("mobilenet-v3-small_8xb16_cifar10")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert inference_model(model, data.astronaut())["pred_class"] in model.classes
    assert model.classes[3] == "cat"


def test_bad_input(classifier: ImageClassifier, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    for call, kind, message in (
        (lambda: init_model(3), TypeError, "init_model: config must be a name or a path, got int"),
        (lambda: init_model("resnet18.py"), ValueError, "unknown model 'resnet18'; there are mobilenet_v3_large"),
        (lambda: init_model(NAME, tmp_path / "none.pth"), FileNotFoundError, "checkpoint: there is no file"),
        (lambda: inference_model(torch.nn.Identity(), "a.jpg"), TypeError, "model must come from init_model"),
        (lambda: inference_model(classifier, tmp_path / "none.jpg"), ValueError, "none.jpg: there is no such file"),
        (
            lambda: inference_model(classifier, tmp_path / "text.jpg"),
            ValueError,
            "text.jpg: no image that PIL can read",
        ),
        (
            lambda: inference_model(classifier, 3),
            TypeError,
            "image must be a path, a PIL image or a NumPy array, got int",
        ),
        (lambda: inference_model(classifier, np.zeros((4, 4, 4), np.uint8)), ValueError, r"got uint8 \[4, 4, 4\]"),
        (lambda: inference_model(classifier, np.zeros((4, 4, 3))), ValueError, r"got float64 \[4, 4, 3\]"),
        (lambda: inference_model(classifier, np.zeros((0, 4, 3), np.uint8)), ValueError, "at least one pixel"),
        (lambda: classifier(torch.zeros(1, 3, 8, 8), mode="loss"), ValueError, "mode must be 'tensor', got 'loss'"),
        (
            lambda: classifier.extract_feat(torch.zeros(1, 3, 8, 8), "head"),
            ValueError,
            "one of backbone, neck, pre_logits",
        ),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_what_the_preprocessor_refuses(classifier: ImageClassifier) -> None:
    for images, kind, message in (
        (None, TypeError, r"data_preprocessor: images must be a Tensor \[N, 3, H, W\], got NoneType"),
        (np.zeros((1, 3, 8, 8)), TypeError, "got ndarray"),
        (torch.zeros(3), ValueError, r"data_preprocessor: images must be \[N, 3, H, W\], got \[3\]"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"got \[1, 4, 8, 8\]"),
    ):
        with pytest.raises(kind, match=message):
            classifier.data_preprocessor(images)


def test_a_pil_image_whose_file_ends_early(classifier: ImageClassifier, tmp_path: Path) -> None:
    Image.fromarray(data.cat()).save(tmp_path / "cat.jpg")
    (tmp_path / "cat.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:9000])
    with pytest.raises(ValueError, match="the PIL image is damaged: image file is truncated"):
        inference_model(classifier, Image.open(tmp_path / "cat.jpg"))


def test_a_head_with_other_outputs_wants_other_names() -> None:
    model = init_model("mobilenet-v3-small_8xb16_cifar10")
    model.network.classifier[3] = torch.nn.Linear(1280, 12)
    with pytest.raises(ValueError, match="the model has 12 outputs and 10 names; set model.classes"):
        inference_model(model, data.cat())
    model.classes = tuple(f"mine {i}" for i in range(12))
    found = inference_model(model, data.cat())
    assert found["pred_class"] == f"mine {found['pred_label']}"


def test_random_weights_are_said() -> None:
    with pytest.warns(UserWarning, match="init_model: this model's weights are random; give checkpoint"):
        init_model("mobilenet-v3-small-050_8xb128_in1k")


def test_a_name_of_trained_weights_without_them_is_said() -> None:
    with pytest.warns(UserWarning, match="names trained weights, which are not downloaded unasked"):
        init_model("mobilenet-v3-small-050_3rdparty_in1k")


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_of_another_number_of_classes(tmp_path: Path, named: bool) -> None:
    """As fine-tuning leaves it."""
    network = randomize_(build(VARIANTS[NAME], num_classes=4), 0, 64)
    meta = {"CLASSES": ["ant", "bee", "cat", "dog"]} if named else {}
    torch.save({"state_dict": network.state_dict(), "meta": meta}, tmp_path / "tuned.pth")
    model = init_model(NAME, tmp_path / "tuned.pth")
    assert model.classes == (("ant", "bee", "cat", "dog") if named else ("0", "1", "2", "3"))
    x = parity_images(2, 64)
    with torch.no_grad():
        assert_net_equal(model(x), network(x))
    found = inference_model(model, data.cat())
    assert found["pred_class"] == model.classes[found["pred_label"]]
    for name in (NAME, None):
        classifier = classifier_of(name, None, str(tmp_path / "tuned.pth"))
        assert classifier.classes == model.classes
        assert classifier.preprocessing == VARIANTS[NAME].preprocessing
