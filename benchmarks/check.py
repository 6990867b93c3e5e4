"""``python -m benchmarks.check COMMIT``: this tree beside another commit, interleaved; fails if it has become slower.

The commit is built in a folder of its own. Both trees freeze the same networks in a process each and take turns; a cell
fails if its ratio is above the limit beyond the noise: if even the lower end of the 95% confidence interval of the
median over the rounds is.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.rivals.cases import Case, prepare
from benchmarks.rivals.engines.ours import TREE, TREE_VARIABLE
from benchmarks.rivals.process import LOAD_TIMEOUT, Worker

ROOT = Path(__file__).parent.parent
LIMIT = 1.05


def verdict(ratios: Sequence[float], limit: float = LIMIT) -> tuple[float, float, bool]:
    """Median, the lower end of its 95% confidence interval (by order statistics), and whether that is within the limit.

    Args:
        ratios: time of this tree over that of the other, a round each.
    """
    ordered = sorted(ratios)
    lower = ordered[max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))]
    return statistics.median(ordered), lower, lower <= limit


def checkout(commit: str, folder: Path) -> Path:
    """The tree of a commit with its kernels built, below a folder."""
    show = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    found = subprocess.run(show, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        sys.exit(f"bench-check: {commit!r} is no commit of this repository")
    tree = folder / found.stdout.strip()
    if not (tree / ".built").exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", tree.name], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
        without_cuda = {**os.environ, "CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} -DMNV3_FAST_CUDA=OFF"}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=tree, check=True, env=without_cuda)
        (tree / ".built").touch()
    return tree


def compare(trees: Sequence[Path], case: Path, threads: int, rounds: int, seconds: float) -> list[float]:
    """Times of the first tree over those of the second, the medians of each round."""
    workers: list[Worker] = []
    try:
        for tree in trees:
            environment = {TREE_VARIABLE: str(tree), "OMP_NUM_THREADS": str(threads)}
            arguments = ["serve", TREE.key, str(case), str(threads)]
            workers.append(Worker(Path(sys.executable), arguments, environment, case.parent / "check.log"))
            workers[-1].answer(LOAD_TIMEOUT)
            workers[-1].stop()
        ratios = []
        for turn in range(rounds + 1):
            times = {}
            for i in (0, 1) if turn % 2 else (1, 0):
                times[i] = statistics.median(workers[i].ask(do="time", seconds=seconds)["times"])
            ratios.append(times[0] / times[1])
        return ratios[1:]  # the first round brings both back into the caches
    finally:
        for worker in workers:
            worker.end()


def main() -> None:
    """The table of cells; status 1 if one is slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="what to compare with")
    parser.add_argument("--nets", nargs="+", choices=("large", "small"), default=["large", "small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one turn")
    options = parser.parse_args()
    build = ROOT / "build" / "check"
    trees = (ROOT, checkout(options.commit, build / "trees"))
    print(f"this tree beside {trees[1].name}: time over its time, limit {LIMIT}")
    passed = True
    for net, batch, threads in product(options.nets, options.batches, options.threads):
        case = Case(net, 1.0, batch, 224, 224)
        prepare(case, build / "cases" / str(case))
        ratios = compare(trees, build / "cases" / str(case), threads, options.rounds, options.seconds)
        median, lower, fine = verdict(ratios)
        passed &= fine
        says = "ok" if fine else "SLOWER"
        print(f"{case}, {threads} threads: {median:.3f} (at least {lower:.3f}) {says}", flush=True)
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
