"""What checks and timings of ``gpu.py`` share: the options, a folder, models loaded once, and the figures found."""

import argparse
import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import GPT2, LLAMA, TINY, write_checkpoint

import extract.model.load
import extract.reenter.target
import extract.run.prepare
import extract.run.recompute
from extract.run.extract import prepare
from extract.run.prepare import Prepared
from schemas import RunSpec

N_NEW = 9
"""Answer places: as many as a trained model fills. Random weights fill them all."""

load_reasoner = extract.model.load.load_reasoner


@dataclass(kw_only=True)
class Session:
    """One run of the script."""

    options: argparse.Namespace
    """What ``gpu.py`` was asked."""
    folder: Path
    """Where checkpoints and lakes are made."""
    begun: float = field(default_factory=time.perf_counter)
    figures: list[tuple[str, str, Any, str]] = field(default_factory=list)
    """Part, what was measured, its value, and what is wanted."""
    loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where models run."""
        return str(self.options.device)

    @property
    def cuda(self) -> bool:
        """Whether that is a card."""
        return self.device.startswith("cuda")

    def seconds(self) -> float:
        """Since the script began."""
        return time.perf_counter() - self.begun

    def say(self, part: str, what: str, value: Any, wanted: str = "") -> None:
        """Note a figure and print it at once."""
        self.figures.append((part, what, value, wanted))
        print(
            f"[{self.seconds():4.0f}s] {part}: {what}: {shown(value)}" + (f"   ({wanted})" if wanted else ""),
            flush=True,
        )
        if self.options.json is not None:
            rows = [[*row[:2], str(row[2]), row[3]] for row in self.figures]
            self.options.json.write_text(json.dumps(rows, indent=1))

    def attempt(self, name: str, needs: float, work: Callable[["Session"], None]) -> None:
        """Run a part where it is wanted and there is time for it; say how long it took, or that it failed."""
        left = self.options.seconds - self.seconds()
        if self.options.only and not any(name.startswith(each) for each in self.options.only.split(",")):
            return
        if left < needs:
            self.say(name, "SKIPPED", f"{left:.0f} s left, {needs:.0f} needed")
            return
        begin = time.perf_counter()
        try:
            work(self)
        except BaseException as error:
            traceback.print_exc()
            self.say(name, "FAILED", f"{type(error).__name__}: {str(error)[:300]}")
        self.say(name, "seconds", round(time.perf_counter() - begin, 1))

    def table(self) -> None:
        """Print all figures once more."""
        print("\n" + "=" * 100)
        for part, what, value, wanted in self.figures:
            print(f"{part:22} {what:70} {shown(value)}" + (f"   [{wanted}]" if wanted else ""))
        print(f"in all {self.seconds():.0f} s")

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds by the clock, until the card is done, too."""
        if self.cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def disk_rate(self) -> float:
        """Bytes a second of plain writing of 2 GB, then flushed."""
        block, path = np.random.default_rng(0).bytes(2**26), self.folder / "raw"
        n = 4 if self.options.tiny else 32

        def write() -> None:
            with path.open("wb") as file:
                for _ in range(n):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())

        rate = n * 2**26 / self.timed(write)
        path.unlink()
        return rate

    def checkpoint(self, name: str) -> tuple[Path, Path]:
        """Folders of a large model, made where it is not there, and of its base."""
        sizes = {"gpt2": GPT2, "llama": LLAMA}[name]
        if self.options.tiny:
            sizes = {**sizes, **TINY, "key_heads": {"gpt2": 8, "llama": 2}[name]}
        return write_checkpoint(self.folder, name, sizes, self.options.data, self.device)

    def ready(self, name: str, capture: str, dtype: str, place: Path, n: int) -> Prepared:
        """A run of one of the large models, prepared."""
        checkpoint, base = self.checkpoint(name)
        spec = RunSpec(
            capture=capture,  # type: ignore[arg-type]
            compute_dtype=dtype,  # type: ignore[arg-type]
            device=self.device,
            batch_size=self.options.batch_size,
            max_new_tokens=N_NEW,
            limit=n,
        )
        data = f"gsm8k={self.options.data}"
        memory = self.options.memory
        return prepare(f"{name}={checkpoint}", data, place, spec, base=str(base), memory=memory, skip_long=True)

    def load_once(
        self, checkpoint: Any, base: Any = None, device: str = "cpu", dtype: str = "float32", **options: Any
    ) -> Any:
        """As ``load_reasoner``, keeping the last large model for all parts and both types: a 1B takes long to load."""
        if not str(checkpoint).startswith(str(self.folder)):
            return load_reasoner(checkpoint, base, device, dtype, **options)
        key = str(checkpoint)
        if key not in self.loaded:
            self.loaded.clear()
            gc.collect()
            seconds = self.timed(
                lambda: self.loaded.update({key: load_reasoner(checkpoint, base, device, "float32", **options)})
            )
            self.say("load", f"{Path(checkpoint).name}, s", seconds)
        reasoner = self.loaded[key]
        if dtype == "float32" != str(reasoner.model.dtype).removeprefix("torch."):
            raise ValueError(f"{checkpoint} was rounded to {reasoner.model.dtype}; measure float32 first")
        if reasoner.model.dtype != getattr(torch, dtype):
            for module in (reasoner.model, reasoner.projection):
                for parameter in module.parameters():
                    parameter.data = parameter.data.to(getattr(torch, dtype))
            reasoner._head_weight = None
        return reasoner

    def share_models(self) -> None:
        """Let every part of the library load models by ``load_once``."""
        for module in (extract.run.prepare, extract.run.recompute, extract.reenter.target):
            module.load_reasoner = self.load_once  # type: ignore[attr-defined]


class HostPeak:
    """Largest resident memory of this process while the context lasts, in GB."""

    def __enter__(self) -> "HostPeak":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        status = Path("/proc/self/status").read_text()
        self.gb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9


def shown(value: Any) -> str:
    """A figure as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
