"""read_split against torchvision's ImageFolder, files of labels, and sets that are not as they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from mnv3_fast.data.folders import read_split
from tests.data.images import write_crops, write_labels

COUNTS = {"n02": 2, "n01": 1, "N03": 3}  # sorted as bytes are: N03, n01, n02


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_crops(tmp_path / "val", COUNTS)
    return tmp_path


def test_class_folders_are_imagefolders(root: Path) -> None:
    (root / "val" / "n01" / "readme.txt").write_text("no image")
    (root / "val" / "n02" / "below").mkdir()
    os.rename(root / "val" / "n02" / "001.JPEG", root / "val" / "n02" / "below" / "a.png")
    theirs = ImageFolder(root / "val")
    ours = read_split(root, "val", 3)
    assert ours.samples == theirs.samples
    assert len(ours.samples) == 6
    assert list(ours.classes) == theirs.classes == ["N03", "n01", "n02"]
    assert (ours.folder, ours.num_classes) == (str(root / "val"), 3)


def test_files_of_labels(root: Path) -> None:
    expected = read_split(root, "val")
    for name in COUNTS:  # the names of the classes are those of the folders of train
        (root / "train" / name).mkdir(parents=True)
    write_labels(root, "val")
    found = read_split(root, "val", 3)
    assert [label for _, label in found.samples] == [label for _, label in expected.samples]
    flat = [f"{Path(path).parent.name}_{Path(path).name}" for path, _ in expected.samples]
    assert [Path(path).name for path, _ in found.samples] == flat
    assert found.classes == expected.classes
    for name in COUNTS:
        (root / "train" / name).rmdir()
    nameless = read_split(root, "val", 7)
    assert (nameless.classes, nameless.num_classes, nameless.samples) == ((), 3, found.samples)


def test_names_of_another_order_are_not_given(root: Path) -> None:
    (root / "meta").mkdir()
    meta = root / "meta" / "val.txt"
    meta.write_text("\nN03/000.JPEG 0\r\nn01/000.JPEG 1\n")
    assert read_split(root, "val").classes == ("N03", "n01", "n02")
    meta.write_text("N03/000.JPEG 1\nn01/000.JPEG 0\n")
    assert read_split(root, "val").classes == ()


def test_the_order_is_that_of_the_file(root: Path) -> None:
    (root / "meta").mkdir()
    (root / "meta" / "val.txt").write_text("n02/001.JPEG 2\nN03/000.JPEG 0\nn02/000.JPEG 2\n")
    names = [os.path.relpath(path, root / "val") for path, _ in read_split(root, "val").samples]
    assert names == ["n02/001.JPEG", "N03/000.JPEG", "n02/000.JPEG"]


def test_missing_and_empty_folders(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="there is no folder .*/train; .* holds folders itself: the folder above"
    ):
        read_split(root / "val", "train")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere/val$"):
        read_split(root / "nowhere", "val")
    with pytest.raises(ValueError, match=r"has no folders; one for each class, or .*meta/n01\.txt with labels"):
        read_split(root / "val", "n01")
    (root / "val" / "n00").mkdir()
    (root / "val" / "n04").mkdir()
    with pytest.raises(ValueError, match="has 2 classes without an image: n00, n04"):
        read_split(root, "val")


def test_another_number_of_classes_names_both(root: Path) -> None:
    with pytest.raises(ValueError, match="has 3 classes, the model has 1000"):
        read_split(root, "val", 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        ("n01/000.JPEG 1\nn02/000.JPEG\n", r"val.txt, line 2: 'n02/000.JPEG', a path and a label are wanted"),
        ("n01/000.JPEG one\n", "line 1: 'n01/000.JPEG one', a path and a label"),
        ("n01/000.JPEG 1.0\n", "line 1: 'n01/000.JPEG 1.0', a path and a label"),
        ("n01/000.JPEG 3\n", "line 1: label 3 of n01/000.JPEG, 0 to 2 is wanted"),
        ("n01/000.JPEG -1\n", "line 1: label -1 of n01/000.JPEG, 0 to 2 is wanted"),
        ("n01/000.JPEG 1\nn01/000.JPEG 1\n", "line 2: n01/000.JPEG is there twice"),
        ("n01/000.JPEG 1\n./n01//000.JPEG 1\n", "line 2: ./n01//000.JPEG is there twice"),
        ("n01/000.JPEG 1\nn02/../n01/000.JPEG 1\n", "line 2: n02/../n01/000.JPEG is there twice"),
        (
            "n01/000.JPEG 1\nn01/9.JPEG 1\nn09/8.JPEG 1\nn01 1\n",
            r"names 3 files that are not there: .*n01/9.JPEG, .*n09",
        ),
    ],
)
def test_bad_files_of_labels(text: str, message: str, root: Path) -> None:
    (root / "meta").mkdir()
    (root / "meta" / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(root, "val", 3)


def test_labels_without_names_are_checked_against_the_model(root: Path) -> None:
    write_labels(root, "val")
    with pytest.raises(ValueError, match="label 2 of n02_000.JPEG, 0 to 1 is wanted"):
        read_split(root, "val", 2)
