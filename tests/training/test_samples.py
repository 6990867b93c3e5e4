"""Which images come when: the same for any number of workers and processes, and from any point of an epoch on."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mnv3_fast.data.folders import read_split
from mnv3_fast.models.variants import Preprocessing
from mnv3_fast.training.recipe import Augmentation
from mnv3_fast.training.samples import Order, TrainingImages, load
from mnv3_fast.training.seeds import seed_of
from mnv3_fast.training.transforms import training_transform
from tests.training.photos import write_photos

HOW = Augmentation(auto_augment="imagenet", erase=0.5, erase_with="noise")
SMALL = Preprocessing(32, 32, "bilinear")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    root = write_photos(tmp_path_factory.mktemp("photos"), train=7, val=1, classes=3)
    return TrainingImages(read_split(root, "train").samples, training_transform(HOW, SMALL))


def batches(images: TrainingImages, order: Order, epoch: int = 0, start: int = 0, workers: int = 0) -> list:
    return list(load(images, order, epoch, start, workers, pin=False))


def assert_same(found: list, wanted: list) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_an_epoch_has_each_image_once() -> None:
    order = Order(20, 5, seed=3)
    for epoch in (0, 1):
        seen = [index for batch in order.batches(epoch) for index, _ in batch]
        assert sorted(seen) == list(range(20))
    assert list(order.batches(0)) != list(order.batches(1))
    assert list(order.batches(0)) == list(Order(20, 5, seed=3).batches(0))
    assert list(order.batches(0)) != list(Order(20, 5, seed=4).batches(0))


def test_what_does_not_fill_a_batch_is_left_out() -> None:
    assert [len(batch) for batch in Order(23, 5, seed=0).batches(0)] == [5] * 4


def test_two_processes_see_what_one_sees() -> None:
    alone = Order(24, 8, seed=1)
    pair = [Order(24, 4, seed=1, rank=rank, world=2) for rank in (0, 1)]
    assert alone.iterations == pair[0].iterations == 3
    for whole, *parts in zip(alone.batches(2), *(one.batches(2) for one in pair), strict=True):
        assert whole[::2] == parts[0]
        assert whole[1::2] == parts[1]


def test_from_an_iteration_on() -> None:
    order = Order(20, 5, seed=3)
    assert list(order.batches(1, start=2)) == list(order.batches(1))[2:]


def test_repetitions_come_in_a_row_with_other_seeds() -> None:
    order = Order(20, 4, seed=3, repetitions=4)
    for batch in order.batches(0):
        assert len({index for index, _ in batch}) == 1
        assert len({place for _, place in batch}) == 4
    assert Counter(index for batch in order.batches(0) for index, _ in batch).most_common()[0][1] == 4


def test_more_images_a_batch_than_there_are() -> None:
    with pytest.raises(ValueError, match="^train: a batch has 2 x 5 images, there are 9 to train with$"):
        Order(9, 5, seed=0, world=2)


def test_workers_change_nothing(images: TrainingImages) -> None:
    order = Order(len(images.samples), 5, seed=3)
    assert_same(batches(images, order, workers=2), batches(images, order))


def test_an_image_depends_on_its_epoch_and_place_alone(images: TrainingImages) -> None:
    order = Order(len(images.samples), 5, seed=3)
    whole = batches(images, order, epoch=4)
    torch.manual_seed(99)
    assert_same(batches(images, order, epoch=4, start=2), whole[2:])
    index, place = next(order.batches(4))[0]
    assert not torch.equal(images[index, place][0], images[index, (*place[:2], place[2] + 1)][0])
    assert not torch.equal(images[index, place][0], images[index, (3, 5, place[2])][0])


def test_reading_leaves_the_generators_alone(images: TrainingImages) -> None:
    drawn = []
    for read in (False, True):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        if read:
            batches(images, Order(len(images.samples), 5, seed=3))
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


def test_seeds_of_places_differ() -> None:
    places = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    assert len({seed_of(*place) for place in places}) == len(places)


def test_an_image_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    broken, small = tmp_path / "broken.jpg", tmp_path / "small.png"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(small)
    padded = training_transform(Augmentation(crop="padded"), SMALL)
    found = [batches(TrainingImages([(str(path), 0)] * 2, padded), Order(2, 2, seed=0))[0] for path in (broken, small)]
    assert found[0] == f"{broken}: no image that PIL can read"
    assert found[1].startswith(f"{small}: Required crop size (32, 32) is larger than input image size")
