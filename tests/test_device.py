"""Devices: which card a process takes, what is said when one fails, and a reasoner in two threads."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from called import run_lake
from safetensors import SafetensorError
from small_runs import checkpoint, write_questions

from extract import load_reasoner
from extract.model.device import device_errors, device_failure, find_device, own_card
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from lake.shell import machine_failure
from schemas import LakeError, UsageError


@pytest.mark.parametrize(
    ("device", "n_visible", "environment", "found"),
    [
        ("cuda", 4, {"LOCAL_RANK": "2"}, "cuda:2"),
        ("cuda", 4, {"SLURM_LOCALID": "3"}, "cuda:3"),
        ("cuda", 4, {"LOCAL_RANK": "1", "SLURM_LOCALID": "3"}, "cuda:1"),
        ("cuda", 1, {"LOCAL_RANK": "2"}, "cuda"),  # the launcher shows each process its own card
        ("cuda", 4, {}, "cuda"),
        ("cuda:1", 4, {"LOCAL_RANK": "2"}, "cuda:1"),
        ("cpu", 4, {"LOCAL_RANK": "2"}, "cpu"),
    ],
)
def test_each_process_of_a_machine_takes_its_own_card(
    device: str, n_visible: int, environment: dict[str, str], found: str
) -> None:
    assert own_card(device, n_visible, environment) == found


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "", "cpu:x"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError, match="does not exist here: .*there is cpu"):
        find_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_training_without_a_card_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_lake("train", "small-gpt2", "--out", tmp_path / "out", "--device", "cuda") == 2
    assert re.fullmatch("lake: device 'cuda' does not exist here: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_failures_of_a_device_are_lines_and_others_come_through() -> None:
    with (
        pytest.raises(LakeError, match=r"^a batch of 8: CUDA out of memory; pass less$"),
        device_errors("a batch of 8", "pass less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    with pytest.raises(LakeError, match=r"^it: CUDA error: an assert$"), device_errors("it", "pass less"):
        raise torch.AcceleratorError("CUDA error: an assert\nmore")
    with pytest.raises(LakeError, match="can't allocate memory"), device_errors("it", "pass less"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="tensor size"), device_errors("it", "pass less"):
        torch.zeros(2) @ torch.zeros(3)
    assert device_failure(RuntimeError("sizes")) is None


def test_where_there_is_no_memory_for_a_library_it_is_said_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    for error in (
        MemoryError(), RuntimeError("can't start new thread"), OSError(12, "Cannot allocate memory", "folder"),
        ImportError("libgomp.so.1: failed to map segment from shared object"),
    ):  # fmt: skip
        assert re.match(r"memory is too small, or limited \(ulimit -v, ulimit -u\): ", machine_failure(error) or "")
    assert machine_failure(ImportError("no such name")) is None


def test_a_full_disk_is_one_line_whichever_library_wrote() -> None:
    for error in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ):
        assert (machine_failure(error) or "").startswith("the disk is full")


@pytest.mark.parametrize("most", [2, 0])
def test_batches_too_large_for_a_device_are_halved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    feed = Flight.feed

    def small_card(self: Flight, embeddings: torch.Tensor, *, record: bool = True) -> torch.Tensor:
        if len(embeddings) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nGPU 0 has ...")
        return feed(self, embeddings, record=record)

    monkeypatch.setattr(Flight, "feed", small_card)
    folder, base = checkpoint("gpt2")
    words = ["extract", "--model", f"toy={folder}", "--base", base, "--lake", str(tmp_path / "x.lake")]
    words += ["--data", str(write_questions(tmp_path / "toy.jsonl", 5)), "--max-new-tokens", "3", "--batch-size", "5"]
    code = run_lake(*words)
    out, err = capsys.readouterr()
    if most:
        assert code == 0
        assert "5 examples" in out
        assert "batches of at most 2" in err
    else:
        assert code == 1
        note, error = err.splitlines()
        assert "low-rank updates" in note
        assert re.search(r"a batch of 1 questions: CUDA out of memory.*pass --capture latent", error)


def test_two_threads_with_one_reasoner_get_what_one_gets() -> None:
    folder, base = checkpoint("gpt2")
    reasoner = load_reasoner(folder, base=base)
    questions = ["Ann has 3 apples and buys 4.", "Bo has 11 pens. He loses 2. How many?", "Cy?", "Di has 5 of 7 books."]

    def think(reasoner: Reasoner, question: str, capture: str | None) -> np.ndarray:
        thinking = reasoner.think([reasoner.encode(question)], capture=capture, max_new_tokens=4, gold=["7"])  # type: ignore[arg-type]
        return thinking.answer_logprob if capture is None else thinking.attention

    jobs = [(question, capture) for question in questions for capture in ("full", None, "latent")] * 4
    alone = [think(reasoner, *job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: think(reasoner, *job), jobs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
