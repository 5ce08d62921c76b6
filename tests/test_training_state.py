"""Going on with a training: what changed since it began, what it would write over, and where it was killed."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_bases import make_base, settings, write_sums

from extract.small_models.train import train as train_small
from extract.training.loop import Watch, train
from extract.training.state import STATE
from schemas import UsageError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "gpt2")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def write_lines(file: Path, source: Path, part: slice) -> Path:
    """Some of the problems of a data file."""
    file.write_text("".join(source.read_text().splitlines(keepends=True)[part]))
    return file


def test_what_changed_since_a_training_began_is_refused(base: Path, sums: Path, tmp_path: Path) -> None:
    data, under, out = (tmp_path / name for name in ("data.jsonl", "base", "out"))
    shutil.copy(sums, data)
    shutil.copytree(base, under)
    train(settings(under, data), out, watch=Watch(stop_after=1))
    write_lines(data, sums, slice(-3))
    with pytest.raises(UsageError, match="a training on other problems: a file of --data or --validation"):
        train(settings(under, data), out)
    held_out = write_lines(tmp_path / "held.jsonl", sums, slice(2))
    shutil.copy(sums, data)
    with pytest.raises(UsageError, match="a training on other problems: a file of --data or --validation"):
        train(settings(under, data), out, validation=[str(held_out)])
    weights = load_file(under / "model.safetensors")
    for scale in (2, 1, 2):  # before the training is finished, as it was, and after
        scaled = {name: scale * value for name, value in weights.items()}
        save_file(scaled, under / "model.safetensors", {"format": "pt"})
        with (
            pytest.raises(UsageError, match="base .* has changed since this training began")
            if scale > 1
            else nullcontext()
        ):
            train(settings(under, data), out)
    for folder, named in ((under, "model.safetensors"), (tmp_path / "adapters", "adapter_model.bin")):
        folder.mkdir(exist_ok=True)
        (folder / named).touch()
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UsageError, match=f"holds a model \\({named}\\) and no training.pt to go on from"):
            train(settings(under, data), folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    torch.save({"step": 3}, out / STATE)
    with pytest.raises(UsageError, match="is none that lake train writes"):
        train(settings(under, data), out)


def test_killed_between_the_last_state_and_its_checkpoint_the_checkpoint_is_written(
    base: Path, sums: Path, tmp_path: Path
) -> None:
    wanted = settings(base, sums)
    whole, cut = (train(wanted, tmp_path / name, watch=Watch(stop_after=stop)) for name, stop in (("w", 9), ("c", 2)))
    shutil.copy(whole / STATE, cut / STATE)
    assert (cut / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    train(wanted, cut)
    for name in ("model.safetensors", "training.json", "codi.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_small_model_of_another_seed_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "small-gpt2").mkdir()
    (tmp_path / "small-gpt2/training.json").write_text('{"seed": 0}')
    with pytest.raises(UsageError, match="small-gpt2 holds the model of seed 0; give --seed 0, or another --out"):
        train_small("small-gpt2", tmp_path, seed=1)
