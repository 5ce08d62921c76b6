"""Where a model runs: which card a process takes, and what is said when a card fails."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from schemas import LakeError, UsageError

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Variables in which torchrun and SLURM number the processes of one machine."""
ALONE = "a single question does not fit; pass --capture latent, or use a device with more memory"
"""Remedy where one question at a time is too many."""
_FULL = ("out of memory", "can't allocate memory", "not enough memory")
_FAILED = (
    *_FULL,
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "CUSOLVER_STATUS",
    "HIP error",
    "MPS ",
)


def find_device(device: str) -> torch.device:
    """Device of that name; ``cuda`` alone is this process' own card where a machine has several.

    Raises
    ------
    UsageError
        If there is no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        chosen = torch.device(own_card(device, count, os.environ))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {device!r} does not exist here: {first_line(error)}; there is cpu and {count} cuda device(s)"
        ) from error
    return chosen


def own_card(device: str, n_visible: int, environment: Mapping[str, str]) -> str:
    """``cuda`` as ``cuda:I`` in the I-th process that torchrun or SLURM started on a machine; else as it is.

    Where a process sees one card only, the launcher has given it that one.
    """
    if device != "cuda" or n_visible < 2:
        return device
    rank = next((environment[name] for name in LOCAL_RANKS if environment.get(name, "").isdecimal()), None)
    return device if rank is None else f"{device}:{rank}"


@contextmanager
def device_errors(what: str, remedy: str) -> Iterator[None]:
    """Say in one line what a device could not do, and what to pass instead.

    Parameters
    ----------
    what
        What was computed, with its size: ``a batch of 64 questions``.
    remedy
        What to pass where the memory is too small for it.

    Raises
    ------
    LakeError
        For want of memory, or a failure of the device. All other errors come through as they are.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (line := device_failure(error)) is None:
            raise
        raise LakeError(f"{what}: {line}" + (f"; {remedy}" if is_full(error) else "")) from error


def device_failure(error: BaseException) -> str | None:
    """First line of an error that a device or its memory raised; ``None`` for any other."""
    if isinstance(error, LakeError):
        return None
    kinds = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    failed = isinstance(error, RuntimeError) and any(mark in str(error) for mark in _FAILED)
    if isinstance(error, kinds) or failed:
        return first_line(error)
    return None


def is_full(error: BaseException) -> bool:
    """Whether memory was too small, on a device or the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(mark in str(error) for mark in _FULL)


def first_line(error: BaseException) -> str:
    """First line of an error's text, with the next where it ends in a colon; with its type where it is a mere value."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".:")
    return (f"{type(error).__name__} {first}" if isinstance(error, KeyError) else first)[:200]


MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # of mallopt(3)


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed activations for the next, whichever thread asks.

    It would give each back to the system and have every page faulted in again: a tenth of the time of a capture.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, 2**31 - 1), (ARENA_MAX, 1)):
            libc.mallopt(parameter, value)


def full_float32() -> None:
    """Have float32 products computed in float32, not in TF32 or bfloat16, whatever the environment asks for.

    NVIDIA's containers set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, which only moves torch's default.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
