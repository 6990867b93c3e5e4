"""Two processes over gloo count what one counts: each image once, also where they do not share evenly."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from mnv3_fast.data.evaluation import Accuracy, evaluate
from mnv3_fast.data.folders import Split, read_split
from mnv3_fast.data.processes import Processes
from mnv3_fast.data.running import fastest
from tests.data.images import write_crops
from tests.data.test_evaluation import CIFAR, Kept, network
from tests.data.test_processes import free_port, torchrun_environment


def kept_of(split: Split, batch: int, processes: Processes, start: Accuracy | None = None) -> tuple[Accuracy, Kept]:
    how, kept = CIFAR.preprocessing, Kept()
    options = {"batch": batch, "workers": 1, "processes": processes, "progress": kept, "keep": True, "start": start}
    return evaluate(fastest(network(), how).run, split, how, **options), kept


def work(rank: int, root: str, batch: int, port: int, first: int) -> None:
    torch.set_num_threads(1)
    os.environ |= torchrun_environment(rank, 2, port)
    split = read_split(root, "val")
    with Processes.from_environment() as processes:
        start = kept_of(Split(split.folder, split.samples[:first], ()), 1, Processes())[0] if first else None
        accuracy, kept = kept_of(split, batch, processes, start)
    found = {"accuracy": asdict(accuracy) | {"seconds": 0}, "outcomes": [list(o) for o in kept.outcomes]}
    found["steps"] = [known.images for known in kept.known]
    Path(root, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "batch", "first", "steps"),
    [(9, 2, 0, [9]), (1, 2, 0, [1]), (20, 1, 3, [19, 20])],
    ids=["nine images", "one image", "going on, summed twice"],
)
def test_two_processes_count_what_one_counts(
    images: int, batch: int, first: int, steps: list[int], tmp_path: Path
) -> None:
    write_crops(tmp_path / "val", dict.fromkeys("abcdef", 4))
    split = read_split(tmp_path, "val")
    chosen = split.samples[:: len(split.samples) // images][:images]
    (tmp_path / "meta").mkdir()
    text = "".join(f"{os.path.relpath(path, split.folder)} {label}\n" for path, label in chosen)
    (tmp_path / "meta" / "val.txt").write_text(text)
    if images > 2:
        Path(chosen[-2][0]).write_text("no image")
    split = read_split(tmp_path, "val")
    assert len(split.samples) == images
    expected, kept = kept_of(split, 64, Processes())
    multiprocessing.spawn(work, (str(tmp_path), batch, free_port(), first), nprocs=2)
    found = [json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in (0, 1)]
    wanted = json.loads(json.dumps(asdict(expected) | {"seconds": 0}))
    assert found[0]["accuracy"] == found[1]["accuracy"] == wanted
    assert wanted["images"] == images
    assert found[0]["outcomes"] == [json.loads(json.dumps(list(o))) for o in kept.outcomes[first:]]
    assert (found[0]["steps"], found[1]["steps"]) == (steps, [])
