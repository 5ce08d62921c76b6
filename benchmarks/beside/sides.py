"""Sides of a comparison, each a process in an environment of its own, that do their works in turns.

Peers live in the environments of ``make peers``, or those of the interpreters which LAKE_PEERS_PYTHON (what trains
sparse autoencoders) and LAKE_PEERS_MODELS_PYTHON (all others) name: the two cannot be installed together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = "this project"
Times = dict[str, list[dict[str, Any]]]


def peers_python(kind: str = "models") -> str:
    """Interpreter of the peers' environment, ``models`` or ``sae``.

    Raises
    ------
    SystemExit
        If there is none.
    """
    folder, variable = {"models": ("models", "LAKE_PEERS_MODELS_PYTHON"), "sae": ("", "LAKE_PEERS_PYTHON")}[kind]
    built = ROOT / f".venv-peers{folder and '-' + folder}" / "bin" / "python"
    python = os.environ.get(variable) or str(built)
    if not Path(python).is_file():
        raise SystemExit(f"there is no {python} to compare with; build it with make peers, or set {variable}")
    return python


def versions(python: str, *packages: str, path: str = "") -> dict[str, str]:
    """Of packages in another environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True, env=environment)
    return dict(zip(packages, done.stdout.split(), strict=True))


class Side:
    """A process that does works.

    Parameters
    ----------
    script
        In this folder; it calls :func:`work.serve`.
    arguments
        For the script.
    python
        Interpreter.
    threads
        For numerical libraries.
    path
        Where else it finds packages.
    """

    def __init__(
        self, script: str, *arguments: Any, python: str = sys.executable, threads: int = 1, path: str = str(ROOT)
    ) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        environment = os.environ | {name: str(threads) for name in names}
        environment |= {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        words = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __call__(self, work: str, **arguments: Any) -> dict[str, Any]:
        """Do one work: its ``clock`` and ``processor`` seconds, and its ``value``.

        Raises
        ------
        RuntimeError
            If the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"work": work, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args[1:2])} ended at {work}")  # type: ignore[index]
        done: dict[str, Any] = json.loads(answer)
        return done

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_turns(works: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, warm: int = 1) -> Times:
    """Every work once in every round, beginning with another one each time; the first rounds do not count."""
    names = list(works)
    times: Times = {name: [] for name in names}
    for number in range(warm + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            done = works[name]()
            if number >= warm:
                times[name].append(done)
    return times


def compared(times: Times, ours: str = OURS, unit: str = "s", per: float = 1.0) -> list[dict[str, Any]]:
    """Rows of a table: seconds of each side, and how many times those of this project they are, round by round.

    Parameters
    ----------
    times
        From :func:`take_turns`.
    ours
        What the others are divided by.
    unit
        Of the columns.
    per
        What seconds are divided by.
    """
    rows = []
    for name, done in times.items():
        row: dict[str, Any] = {"who": name}
        for kind, title in (("processor", "of processors"), ("clock", "by the clock")):
            row[f"{unit}, {title}"] = [each[kind] / per for each in done]
        for kind, title in (("processor", "of processors"), ("clock", "by the clock")):
            ratios = [each[kind] / own[kind] for each, own in zip(done, times[ours], strict=True)]
            row[f"times ours, {title}"] = None if name == ours else ratios
        rows.append(row)
    return rows
