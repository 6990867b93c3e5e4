"""``predict``: what it finds, reads, skips, writes and goes on with."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from mnv3_fast.cli import app
from mnv3_fast.cli.models import classifier_of
from mnv3_fast.cli.records import json_line
from mnv3_fast.models.preprocessing import open_image
from mnv3_fast.prediction import find_images, predict_files, read_image
from mnv3_fast.testing import parity_model
from tests.checkpoints.test_checkpoints import mmpretrain_file

runner = CliRunner()
PHOTOS = ("astronaut", "cat", "coffee")
RANDOM = ["--model", "small", "--weights", "random"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, one of them in a folder below, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for name in PHOTOS:
        place = folder / "below" if name == "coffee" else folder
        Image.fromarray(getattr(data, name)()).save(place / f"{name}.png")
    (folder / "readme.txt").write_text("no image")
    return folder


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def expected(photos: Path) -> dict[str, torch.Tensor]:
    """torchvision's own answer, by the transforms that come with its weights."""
    model = parity_model("small")
    transform = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    files = {name: next(photos.rglob(f"{name}.png")) for name in PHOTOS}
    with torch.no_grad():
        return {
            str(file): model(transform(Image.open(file).convert("RGB"))[None]).softmax(1)[0] for file in files.values()
        }


def test_json_is_what_torchvision_says(photos: Path, expected: dict[str, torch.Tensor]) -> None:
    result = runner.invoke(app, ["predict", str(photos), *RANDOM, "--json", "--top", "3", "--batch", "2"])
    assert result.exit_code == 0, result.output
    found = lines(result.stdout)
    assert [Path(record["path"]).stem for record in found] == ["astronaut", "cat", "coffee"]
    for record in found:
        values, labels = expected[record["path"]].topk(3)
        assert [guess["label"] for guess in record["predictions"]] == labels.tolist()
        np.testing.assert_allclose([g["score"] for g in record["predictions"]], values.numpy(), rtol=1e-4)
        assert record["error"] is None
        assert record["warnings"] == ["random weights, the classes mean nothing"]
    assert found[0]["predictions"][0]["class"]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_and_workers_change_nothing(batch: int, workers: int, photos: Path) -> None:
    classifier = classifier_of("small", "random", None)
    files = list(find_images([str(photos)])) * 3
    one = list(predict_files(classifier, files, 5, 1, 1))
    assert list(predict_files(classifier, files, 5, batch, workers)) == one


def test_csv_and_text(photos: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["predict", str(photos / "cat.png"), *RANDOM, "--csv", "--top", "2"])
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["path"] for row in rows} == {str(photos / "cat.png")}
    assert float(rows[0]["score"]) >= float(rows[1]["score"]) > 0
    text = runner.invoke(app, ["predict", str(photos / "cat.png"), *RANDOM, "--top", "2"]).stdout
    path, guesses = text.rstrip("\n").split("\t")
    assert path == str(photos / "cat.png")
    assert guesses.startswith(rows[0]["class"])


def bad_files(folder: Path) -> list[str]:
    """Missing, empty, text, truncated, not an image, and one that says that it is enormous."""
    whole = folder / "whole.jpg"
    Image.fromarray(data.cat()).save(whole)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "truncated.jpg").write_bytes(whole.read_bytes()[:5000])
    (folder / "archive.png").write_bytes(b"PK\x03\x04" + bytes(500))
    huge = bytearray((folder / "huge.bmp").write_bytes(b"") or b"")
    Image.new("RGB", (8, 8)).save(folder / "huge.bmp")
    huge = bytearray((folder / "huge.bmp").read_bytes())
    huge[18:26] = (60000).to_bytes(4, "little") * 2
    (folder / "huge.bmp").write_bytes(huge)
    whole.unlink()
    names = ("missing.jpg", "empty.jpg", "text.jpg", "truncated.jpg", "archive.png", "huge.bmp")
    return [str(folder / name) for name in names]


def test_bad_files_are_named_and_skipped(photos: Path, tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    files = [bad[0], str(photos / "cat.png"), *bad[1:], str(photos / "astronaut.png")]
    result = runner.invoke(app, ["predict", *files, *RANDOM, "--json", "--batch", "3"])
    assert result.exit_code == 1
    found = lines(result.stdout)
    assert [record["path"] for record in found] == files
    good = [record for record in found if record["error"] is None]
    assert [Path(record["path"]).name for record in good] == ["cat.png", "astronaut.png"]
    assert all(len(record["predictions"]) == 5 for record in good)
    said = result.stderr
    for path, why in zip(
        bad, ("no such file", "no image", "no image", "damaged", "no image", "exceeds limit"), strict=True
    ):
        assert any(line.startswith(f"{path}: ") and why in line for line in said.splitlines()), (path, why, said)
    assert "6 of 8 files could not be read" in said


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    images = {
        "black.png": Image.new("RGB", (300, 300)),
        "dark.png": Image.fromarray((data.cat() // 22).astype(np.uint8)),
        "tiny.png": Image.fromarray(data.cat()).resize((20, 20)),
        "long.png": Image.fromarray(np.concatenate([data.cat()] * 5, 1)),
        "deep.png": Image.fromarray(np.asarray(Image.fromarray(data.cat()).convert("L")).astype(np.uint16) * 257),
        "photo.png": Image.fromarray(data.cat()),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    result = runner.invoke(app, ["predict", str(tmp_path), *RANDOM, "--json"])
    assert result.exit_code == 0
    of_all = ["random weights, the classes mean nothing"]
    assert all(record["warnings"][:1] == of_all for record in lines(result.stdout))
    assert result.stderr.count(of_all[0]) == 1
    said = {Path(record["path"]).name: record["warnings"][1:] for record in lines(result.stdout)}
    assert said["black.png"] == ["all values lie between 0 and 0"]
    assert "the mean of 0 to 255 is" in said["dark.png"][0]
    assert said["tiny.png"] == ["20 x 20 pixels: enlarged 13 times"]
    assert said["long.png"][0].startswith("2255 x 300 pixels: the central crop shows 12%")
    assert said["deep.png"] == ["mode I;16: scaled to 8 bits"]
    assert said["photo.png"] == []
    assert "tiny.png: 20 x 20 pixels" in result.stderr


def test_sixteen_bits_give_what_eight_give(tmp_path: Path) -> None:
    gray = np.asarray(Image.fromarray(data.cat()).convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "deep.png")), np.asarray(Image.fromarray(gray).convert("RGB"))
    )


def test_photos_are_turned_as_exif_says(tmp_path: Path) -> None:
    photo = Image.fromarray(data.cat())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    photo.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == photo.size[::-1]


def test_find_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert list(find_images(["."])) == ["./astronaut.png", "./cat.png", "./below/coffee.png"]
    assert list(find_images(["*.png", "cat.png"])) == ["astronaut.png", "cat.png"]
    assert list(find_images(["**/*.png"])) == ["astronaut.png", "below/coffee.png", "cat.png"]
    assert list(find_images(["none.png", "readme.txt"])) == ["none.png", "readme.txt"]
    assert list(find_images(["*.webp"])) == []


def test_checkpoint_of_mmpretrain(photos: Path, tmp_path: Path) -> None:
    from mnv3_fast.apis import inference_model, init_model
    from mnv3_fast.models.variants import VARIANTS, build
    from mnv3_fast.testing.parity import randomize_

    name = "mobilenet-v3-small-050_8xb128_in1k"
    file = mmpretrain_file(randomize_(build(VARIANTS[name]), 5), tmp_path / "file.pth")
    options = ["--model", name, "--checkpoint", str(file), "--json", "--top", "1"]
    result = runner.invoke(app, ["predict", str(photos / "cat.png"), *options])
    assert result.exit_code == 0, result.output
    found = lines(result.stdout)[0]["predictions"][0]
    expected = inference_model(init_model(name, file), photos / "cat.png")
    assert found["label"] == expected["pred_label"]
    assert abs(found["score"] - expected["pred_score"]) < 1e-4
    assert found["class"] == expected["pred_class"]


def test_classes_of_the_checkpoint(photos: Path, tmp_path: Path) -> None:
    """Those that mmpretrain wrote into it, else the configuration's."""
    from mnv3_fast.models.variants import VARIANTS, build

    name = "mobilenet-v3-small_8xb16_cifar10"
    state = build(VARIANTS[name]).state_dict()
    metas = ({}, {"dataset_meta": {"classes": [f"mine {i}" for i in range(10)]}})
    for meta, wanted in zip(metas, (("cat", 3), ("mine 3", 3)), strict=True):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "file.pth")
        options = ["--model", name, "--checkpoint", str(tmp_path / "file.pth"), "--json", "--top", "10"]
        result = runner.invoke(app, ["predict", str(photos / "cat.png"), *options])
        assert result.exit_code == 0, result.output
        assert wanted in {(found["class"], found["label"]) for found in lines(result.stdout)[0]["predictions"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "predict needs trained weights: --weights DEFAULT downloads"),
        (["--weights", "NONE"], "weights 'NONE' do not exist for mobilenet_v3_large; there are DEFAULT, IMAGENET1K_V1"),
        (["--weights", "random", "--model", "larger"], "unknown model 'larger'; like it are large; "),
        (["--weights", "DEFAULT", "--model", "MobileNetV3_small_x1_0"], "are a .pdparams file, which cannot be read: "),
        (["--weights", "random", "--checkpoint", "a.pth"], "--weights and --checkpoint exclude each other"),
        (["--checkpoint", "none.pth"], "checkpoint: there is no file none.pth"),
        ([*RANDOM, "--json", "--csv"], "--json and --csv exclude each other"),
        ([*RANDOM, "--top", "0"], "--top must be at least 1, got 0"),
        ([*RANDOM, "--batch", "-1"], "--batch must be at least 1, got -1"),
        ([*RANDOM, "--workers", "0"], "--workers must be at least 1, got 0"),
        ([*RANDOM, "--threads", "0"], "--threads must be at least 1, got 0"),
        ([*RANDOM, "--threads", "100000"], "--threads must be at most 1024, got 100000"),
        ([*RANDOM, "--batch", str(2**63)], f"--batch must be at most {2**31 - 1}, got {2**63}"),
        ([*RANDOM, "--resume"], "--resume and --overwrite need --output"),
        ([*RANDOM, "--output", "."], "--output . is a folder, a file is wanted"),
    ],
)
def test_refusals(options: list[str], message: str, photos: Path) -> None:
    result = runner.invoke(app, ["predict", str(photos / "cat.png"), *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_nothing_to_predict(tmp_path: Path) -> None:
    result = runner.invoke(app, ["predict", str(tmp_path), *RANDOM])
    assert result.exit_code == 2
    assert "no images in" in result.stderr


def test_a_thread_that_decodes_keeps_no_image(photos: Path) -> None:
    """What waits is bounded: never more than two batches and an image for each worker are read ahead."""
    read = 0

    def paths() -> Any:
        nonlocal read
        for _ in range(200):
            read += 1
            yield str(photos / "cat.png")

    classifier = classifier_of("small", "random", None)
    for done, _ in enumerate(predict_files(classifier, paths(), 1, 4, 2), 1):
        assert read - done <= 2 * 4 + 2


def test_read_image_of_a_good_file(photos: Path) -> None:
    image, warnings, error = read_image(str(photos / "cat.png"), classifier_of("small", "random", None).preprocessing)
    assert image is not None
    assert image.shape == (3, 224, 224)
    assert image.dtype is torch.uint8
    assert (warnings, error) == ([], None)


@pytest.mark.slow
def test_ten_thousand_images_in_flat_memory(photos: Path, tmp_path: Path) -> None:
    from tests.contract.test_threads import resident_mib

    files = [str(photos / "cat.png"), str(photos / "astronaut.png")] * 5000
    output = tmp_path / "out.jsonl"
    classifier = classifier_of("small", "random", None)
    begin = 0.0
    with output.open("w") as stream:
        for i, prediction in enumerate(predict_files(classifier, files, 5, 8, 2)):
            stream.write(json_line(prediction))
            if i == 1000:
                begin = resident_mib()
    assert i == 9999
    assert resident_mib() - begin < 30


def test_odd_images_do_not_end_the_run(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 30000)).save(tmp_path / "thin.png")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "dds.png").write_bytes(b"DDS " + bytes(200))
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    (tmp_path / "good.png").write_bytes((photos / "cat.png").read_bytes())
    files = [str(tmp_path / name) for name in ("thin.png", "fifo.png", "dds.png", "nan.tiff", "good.png")]
    result = runner.invoke(app, ["predict", *files, *RANDOM, "--json"])
    assert result.exit_code == 1
    found = lines(result.stdout)
    assert [record["error"] is None for record in found] == [False, False, False, False, True]
    assert "too thin" in found[0]["error"]
    assert "not a regular file" in found[1]["error"]
    result = runner.invoke(app, ["predict", str(tmp_path), *RANDOM, "--json"])  # a folder's FIFO is passed over
    assert len(lines(result.stdout)) == 4
