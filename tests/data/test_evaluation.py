"""evaluate against torchvision's eager model on ImageFolder's images; what it counts, keeps, refuses."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mnv3_fast.data.evaluation import Accuracy, Outcome, evaluate
from mnv3_fast.data.folders import Split, read_split
from mnv3_fast.data.loading import PreparedImages, Shares, WorkerDied
from mnv3_fast.data.processes import Processes
from mnv3_fast.data.running import fastest, normalising
from mnv3_fast.models.variants import Preprocessing, build, find_variant
from mnv3_fast.testing.parity import randomize_
from tests.data.images import write_crops

CIFAR = find_variant("mobilenet-v3-small_8xb16_cifar10")
SMALL = find_variant("mobilenet-v3-small-050_8xb128_in1k")
COUNTS = dict.fromkeys("abcdef", 3) | {"c": 5}
CLASSES = len(COUNTS)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than there are CPUs


def network(variant: Any = CIFAR) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize_(build(variant, num_classes=CLASSES), 0, variant.preprocessing.crop)


def theirs(folder: Path, how: Preprocessing) -> ImageFolder:
    """torchvision's reader of images, with the transforms that its training scripts use."""
    steps = [
        transforms.Resize(how.resize, transforms.InterpolationMode(how.interpolation)),
        transforms.CenterCrop(how.crop),
        transforms.PILToTensor(),
    ]
    return ImageFolder(folder, transforms.Compose(steps))


def logits_of_torchvision(model: nn.Module, folder: Path, how: Preprocessing) -> tuple[Tensor, Tensor]:
    """Logits and labels of all images, one by one, by torchvision's eager model."""
    normalise = transforms.Normalize(how.mean, how.std)
    with torch.no_grad():
        found = [(model(normalise(x.float())), y) for x, y in DataLoader(theirs(folder, how))]
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def counts(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """How often the right class is the best, and among the best five."""
    better = (logits > logits.gather(1, labels[:, None])).sum(1)
    return int((better < 1).sum()), int((better < 5).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    write_crops(root / "val", COUNTS)
    return root


@pytest.fixture(scope="module")
def split(folder: Path) -> Split:
    return read_split(folder, "val")


class Kept:
    """What progress was told."""

    def __init__(self) -> None:
        self.known: list[Accuracy] = []
        self.outcomes: list[Outcome] = []

    def __call__(self, known: Accuracy, outcomes: list[Outcome]) -> None:
        self.known.append(known)
        self.outcomes += outcomes


def same(one: Accuracy, other: Accuracy) -> bool:
    return replace(one, seconds=0) == replace(other, seconds=0)


@pytest.mark.parametrize("variant", [CIFAR, SMALL], ids=["32 x 32", "224 x 224, bicubic"])
@pytest.mark.parametrize("way", ["frozen", "accelerated"])
def test_counts_are_torchvisions(variant: Any, way: str, folder: Path, split: Split) -> None:
    model, how = network(variant), variant.preprocessing
    logits, labels = logits_of_torchvision(model, folder / "val", how)
    runner = fastest(model, how, autocast=way == "accelerated")
    assert runner.way == way
    kept = Kept()
    found = evaluate(runner.run, split, how, batch=4, workers=0, progress=kept, keep=True)
    assert (found.images, found.correct_top1, found.correct_top5) == (20, *counts(logits, labels))
    assert 0 < found.correct_top1 < found.correct_top5 < 20  # else other rules would pass
    assert found.top1 == pytest.approx(100 * found.correct_top1 / 20)
    assert found.images_per_second > 0
    assert [known.images for known in kept.known] == [4, 8, 12, 16, 20]
    best = logits.topk(5)  # of logits: small probabilities may all be 0
    assert [outcome.place for outcome in kept.outcomes] == list(range(20))
    assert [outcome.labels for outcome in kept.outcomes] == best.indices.tolist()
    torch.testing.assert_close(
        torch.tensor([o.scores for o in kept.outcomes]), logits.softmax(1).gather(1, best.indices), rtol=1e-3, atol=1e-6
    )


def test_pixels_are_imagefolders(tmp_path: Path) -> None:
    (tmp_path / "val" / "a").mkdir(parents=True)
    place, photo = tmp_path / "val" / "a", Image.fromarray(data.coffee())
    turned = Image.Exif()
    turned[0x0112] = 6  # turn it by a quarter: ImageFolder does not
    photo.save(place / "0.jpg", exif=turned)
    photo.convert("L").save(place / "1.JPEG")
    photo.convert("CMYK").save(place / "2.jpeg")
    photo.convert("P").save(place / "3.png")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 3).save(place / "4.png")  # cut off at 255
    photo.resize((300, 7)).save(place / "5.bmp")
    expected = theirs(tmp_path / "val", SMALL.preprocessing)
    ours = PreparedImages(read_split(tmp_path, "val"), SMALL.preprocessing)
    assert len(ours) == len(expected) == 6
    for number in range(6):
        where, image, error = ours[number]
        assert (where, error) == (number, "")
        assert image is not None and torch.equal(image, expected[number][0]), number


def test_workers_and_batches_change_nothing(split: Split) -> None:
    how = CIFAR.preprocessing
    run = fastest(network(), how).run
    expected = Kept()
    one = evaluate(run, split, how, batch=1, workers=0, progress=expected, keep=True)
    for batch, workers in ((3, 0), (3, 1), (7, 3), (64, 2)):
        kept = Kept()
        assert same(evaluate(run, split, how, batch=batch, workers=workers, progress=kept, keep=True), one)
        assert kept.outcomes == expected.outcomes


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("images", [1, 2, 7, 16, 41])
def test_shares_are_exact(images: int, world: int) -> None:
    for batch in (1, 3, 16):
        for first in {0, 1, images // 2, images}:
            shares = [Shares(first, images, batch, Processes(rank, world)) for rank in range(world)]
            lists = [list(share) for share in shares]
            assert sorted(place for found in lists for part in found for place in part) == list(range(first, images))
            assert [len(found) for found in lists] == [len(share) for share in shares]
            for turn in range(shares[0].turns):
                done = sorted(place for found in lists for part in found[: turn + 1] for place in part)
                assert done == list(range(first, shares[0].done_after(turn)))
            assert max(map(len, lists)) == shares[0].turns


def test_unreadable_images_count_as_wrong(tmp_path: Path) -> None:
    write_crops(tmp_path / "val", COUNTS)
    how, run = CIFAR.preprocessing, fastest(network(), CIFAR.preprocessing).run
    whole = Kept()
    before = evaluate(run, read_split(tmp_path, "val"), how, workers=0, progress=whole, keep=True)
    split = read_split(tmp_path, "val")
    right = [o.place for o in whole.outcomes if o.labels[0] == split.samples[o.place][1]]
    bad = [right[0], *(place for place in range(20) if place != right[0] and place % 7 == 3)]
    for place in bad:
        file = Path(split.samples[place][0])
        file.write_bytes(file.read_bytes()[:300])
    kept = Kept()
    found = evaluate(run, split, how, batch=2, workers=2, progress=kept, keep=True)
    assert found.images == 20
    assert [path for path, _ in found.unreadable] == [split.samples[place][0] for place in sorted(bad)]
    assert all(why.startswith(("damaged", "no image")) for _, why in found.unreadable)
    assert found.correct_top1 == before.correct_top1 - len(set(right) & set(bad)) < before.correct_top1
    for old, new in zip(whole.outcomes, kept.outcomes, strict=True):
        assert new == old if new.place not in bad else (new.labels, new.scores) == ([], []) and new.error


def test_outputs_that_are_not_finite_are_never_right(split: Split) -> None:
    def run(images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), CLASSES)
        logits[:, 0] = 1
        logits[0, 0] = float("nan")  # which topk takes for the largest
        return logits

    kept = Kept()
    found = evaluate(run, split, CIFAR.preprocessing, batch=2, workers=0, progress=kept, keep=True)
    assert (found.images, found.not_finite) == (20, 10)
    assert found.correct_top1 == 1  # the images of class 0 are 0, 1 and 2
    assert kept.outcomes[0].error == "the network's outputs are not finite"
    assert kept.outcomes[1].labels[0] == 0


def test_going_on_gives_the_same(split: Split) -> None:
    how, run = CIFAR.preprocessing, fastest(network(), CIFAR.preprocessing).run
    whole, first, second = Kept(), Kept(), Kept()
    expected = evaluate(run, split, how, batch=3, workers=0, progress=whole, keep=True)
    calls = 0

    def interrupted(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return run(images)

    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted, split, how, batch=3, workers=2, progress=first, keep=True)
    start = first.known[-1]
    assert start.images == 9
    found = evaluate(run, split, how, batch=4, workers=0, start=start, progress=second, keep=True)
    assert same(found, expected)
    ranks = [outcome.labels.index(label) for outcome, (_, label) in zip(whole.outcomes, split.samples, strict=True)
             if label in outcome.labels]  # fmt: skip
    assert (found.correct_top1, found.correct_top5) == (ranks.count(0), len(ranks))
    assert found.seconds > start.seconds
    assert first.outcomes + second.outcomes == whole.outcomes
    assert evaluate(run, split, how, workers=0, start=found) == found


def test_a_killed_worker_is_an_error_with_a_reason(split: Split) -> None:
    def run(images: Tensor) -> Tensor:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)  # as systems do that are out of memory
            worker.join()
        return torch.zeros(len(images), CLASSES)

    with pytest.raises(WorkerDied, match=r"died, perhaps for want of memory, .* (exited unexpectedly|killed)"):
        evaluate(run, split, CIFAR.preprocessing, batch=1, workers=1)


def test_an_error_of_the_network_stays_its_own(split: Split) -> None:
    def run(images: Tensor) -> Tensor:
        raise RuntimeError("a fault of the network")

    with pytest.raises(RuntimeError, match="^a fault of the network$"):
        evaluate(run, split, CIFAR.preprocessing, workers=1)


def test_another_number_of_classes_names_both(split: Split) -> None:
    for classes in (CLASSES - 1, CLASSES + 1):
        with pytest.raises(ValueError, match=f"val has {CLASSES} classes, the network {classes}"):
            evaluate(lambda x, n=classes: torch.zeros(len(x), n), split, CIFAR.preprocessing, workers=0)
    with pytest.raises(ValueError, match=r"run must give \[20, classes\], got \[20, 6, 1, 1\]"):
        evaluate(lambda x: torch.zeros(len(x), CLASSES, 1, 1), split, CIFAR.preprocessing, workers=0)
    nameless = Split(split.folder, split.samples, ())
    more = evaluate(lambda x: torch.zeros(len(x), CLASSES + 1), nameless, CIFAR.preprocessing, workers=0)
    assert more.images == 20
    with pytest.raises(ValueError, match=f"val has {CLASSES} classes, the network {CLASSES - 1}"):
        evaluate(lambda x: torch.zeros(len(x), CLASSES - 1), nameless, CIFAR.preprocessing, workers=0)


def test_autocast_reaches_the_network(split: Split) -> None:
    seen = []
    model, how = network(), CIFAR.preprocessing
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    found = evaluate(normalising(model, how), split, how, workers=0, amp=torch.bfloat16)
    assert (found.images, seen) == (20, [torch.bfloat16])
