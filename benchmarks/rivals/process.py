"""Workers as seen from outside: started, asked, stopped between their turns."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.rivals.environments import Missing

ROOT = Path(__file__).parent.parent.parent
LOAD_TIMEOUT = 1800.0
ANSWER_TIMEOUT = 300.0


class Worker:
    """One process; whatever goes wrong in it is raised as Missing, with the reason."""

    def __init__(self, interpreter: Path, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(interpreter), "-m", "benchmarks.rivals.worker", *arguments]
        with log.open("a") as errors:
            # A session of its own, so that its helpers are stopped and ended with it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, text=True,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        self.pid, self._log = self._process.pid, log

    def answer(self, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """The next line of the worker."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            raise Missing(f"no answer within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Missing(f"its process ended with status {self._process.wait()} ({self._log})")
        found = json.loads(line)
        if "error" in found:
            raise Missing(" ".join(found["error"].split())[:300])
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """One turn: let the worker go on, hand it a request, stop it when it has answered."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self.answer()
        except BrokenPipeError:
            raise Missing(f"its process ended with status {self._process.wait()} ({self._log})") from None
        finally:
            self.stop()

    def stop(self) -> None:
        """Idle workers must not run: their threads may wait in busy loops."""
        self._signal(signal.SIGSTOP)

    def processor_time(self) -> float:
        """Seconds that it has computed; 0 once it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Kill it and its helpers."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self.pid, number)


def busy_seconds() -> float:
    """Seconds since boot that the machine's processors were busy, or given to others by its host."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    user, nice, system, _idle, _wait, interrupts, soft, stolen = fields[:8]
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
