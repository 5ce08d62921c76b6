"""The command line as a user meets it: one good run, and every mistake in one line with exit 2 and nothing written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_runs
import xarray as xr

from lake import shell

CODI = Path(__file__).parent / "data" / "codi_oracle"
GOOD = [{"question": "Tom has 7 apples.", "answer": "<<3+4=7>> #### 7"}, {"question": "Why?", "answer": 3}]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    return path


@pytest.fixture
def broken(tmp_path):
    """Copies of a checkpoint and its base, to be damaged."""
    for name in ("codi-gpt2", "base-gpt2"):
        shutil.copytree(CODI / name, tmp_path / name, copy_function=shutil.copyfile)
    return tmp_path


def arguments(folder, data, lake, arch="gpt2", **extra):
    flags = [text for name, value in extra.items() for text in (f"--{name.replace('_', '-')}", value)]
    model = ["--model", f"m={folder / f'codi-{arch}'}", "--base", folder / f"base-{arch}"]
    return ["extract", *model, "--data", data, "--lake", lake, "--max-new-tokens", 4, *flags]


def refused(answer, lake, *words):
    """Nor is anything written."""
    two_runs.refused(answer, *words)
    assert answer[2].startswith("lake: ")
    assert not lake.exists()


def test_extract_writes_what_plain_xarray_reads(call, data, tmp_path):
    code, out, err = call(*arguments(CODI, data, tmp_path / "a.lake"))
    assert code == 0
    assert "m/tiny" in out
    scale, cut, unread = err.splitlines()  # and no bar where there is no terminal
    assert "codi-gpt2 says the scale of its low-rank updates" in scale
    assert "answers had not ended after" in cut
    assert "answers no number can be read" in unread
    dataset = xr.open_zarr(tmp_path / "a.lake", group="m/tiny", consolidated=False)
    assert dataset.committed.values.all()
    code, out, _ = call(*arguments(CODI, data, tmp_path / "a.lake"), "--json")
    assert json.loads(out)["shards_kept"] == 1


def test_what_happens_to_columns_and_steps_is_said(call, tmp_path):
    path = tmp_path / "tiny.jsonl"
    path.write_text(json.dumps({"question": "Tom owes $5.\u2028What has he?", "answer": "#### -$5", "layer": 1}) + "\n")
    code, _, err = call(*arguments(CODI, path, tmp_path / "a.lake", lora_alpha="32"))
    assert code == 0
    renamed, no_steps, cut, unread = err.splitlines()
    assert renamed == "lake: columns stored under another name: 'layer' as data_layer"
    assert no_steps.startswith("lake: no chain of steps can be read")
    assert "answers had not ended after" in cut
    assert "answers no number can be read" in unread
    dataset = xr.open_zarr(tmp_path / "a.lake", group="m/tiny", consolidated=False)
    assert dataset["data_layer"].values.tolist() == [1]
    assert dataset["gold_answer"].values.tolist() == ["-5"]
    assert dataset["layer"].dims == ("layer",)


def test_mistakes_in_the_data(call, tmp_path):
    """As the command tells them; what is refused is in ``test_data``."""
    lake = tmp_path / "a.lake"
    for content, words in [
        ('{"question": "a"', ["line 1", "not JSON"]),
        ('{"problem_text": "a?", "result": 3}', ["line 1", "problem_text, result", "--question-field"]),
        (json.dumps({"question": "word " * 400, "answer": 1}), ["question 1", "256", "--skip-long"]),
    ]:
        path = tmp_path / "bad.jsonl"
        path.write_text(content)
        refused(call(*arguments(CODI, path, lake)), lake, *words)
    refused(call(*arguments(CODI, tmp_path / "absent.jsonl", lake)), lake, "absent.jsonl")


def edit_state(folder, change):
    path = folder / "codi-gpt2" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_mistakes_in_the_checkpoint(call, data, broken, tmp_path):
    lake = tmp_path / "a.lake"
    weights = broken / "codi-gpt2" / "pytorch_model.bin"
    whole = weights.read_bytes()

    edit_state(broken, lambda state: state.update({"codi.surplus": torch.zeros(1)}))
    refused(call(*arguments(broken, data, lake)), lake, "surplus")
    weights.write_bytes(whole)
    edit_state(broken, lambda state: state.pop("prj.1.weight"))
    refused(call(*arguments(broken, data, lake)), lake, "prj.1.weight")
    weights.write_bytes(whole[: len(whole) // 2])
    refused(call(*arguments(broken, data, lake)), lake, "pytorch_model.bin")
    weights.unlink()
    refused(call(*arguments(broken, data, lake)), lake, "pytorch_model.bin")
    weights.write_bytes(whole)

    config = json.loads((broken / "base-gpt2" / "config.json").read_text())
    for change, words in [
        ({"model_type": "bert"}, ["bert", "gpt2", "llama"]),
        ({"n_layer": 3}, []),
        ({"n_embd": 40}, []),
    ]:
        (broken / "base-gpt2" / "config.json").write_text(json.dumps(config | change))
        refused(call(*arguments(broken, data, lake)), lake, *words)
    shutil.rmtree(broken / "base-gpt2")
    shutil.copytree(CODI / "base-llama", broken / "base-gpt2")
    refused(call(*arguments(broken, data, lake)), lake)
    shutil.rmtree(broken / "base-gpt2")
    refused(call(*arguments(broken, data, lake)), lake, "base-gpt2")


def test_mistakes_in_the_flags(call, data, tmp_path):
    lake = tmp_path / "a.lake"
    refused(call(*arguments(CODI, data, lake, device="cuda:7")), lake, "cuda:7")
    refused(call(*arguments(CODI, data, lake, device="abacus")), lake, "abacus")
    refused(call(*arguments(CODI, data, lake, dtype="float8")), lake, "float8", "float16")
    refused(call(*arguments(CODI, data, lake, capture="some")), lake, "some", "latent")
    refused(call(*arguments(CODI, data, lake, batch_size=0)), lake, "--batch-size")
    refused(call(*arguments(CODI, data, lake, shard="3/2")), lake, "3/2")
    refused(call("extract", "--model", "x", "--data", data), lake, "--lake")
    refused(call("nonsense"), lake, "nonsense")
    twice = "--model is given 2 times; give one; see lake extract --help"
    refused(call(*arguments(CODI, data, lake), "--model", "other"), lake, twice)
    refused(call("analyze", "lens", lake, "--layers", "0", "--layers=1"), lake, "separate several by commas")
    for words in (["problems", "--out", " "], ["info", ""], ["query", lake, "select 1", "--csv", ""]):
        refused(call(*words), lake, "empty and names no place")


def test_places_of_what_is_written(call, data, tmp_path, monkeypatch):
    """No table lands in a lake, whichever; a home behind ``=`` is one."""
    lake = tmp_path / "a.lake"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = [
        f"--lake=~/{lake.name}" if word is lake else word for word in arguments(CODI, data, lake) if word != "--lake"
    ]
    code, _, _ = call(*words, "--limit", "1")
    assert (code, (tmp_path / "~").exists()) == (0, False)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for words, message in (
        (["problems", "--out", lake / "problems"], "inside the lake"),
        (["train", "small-gpt2", "--out", lake / "model"], "inside the lake"),
        (["train", "small-gpt2", "--out", tmp_path / "file"], "name another place"),
        (["push", lake, lake / "inner"], f"inner is inside the lake {lake},"),
        (["merge", lake, "--into", lake / "inner"], f"inner is inside the lake {lake},"),
        (arguments(CODI, data, lake / "inner"), f"inner is inside the lake {lake},"),
        (["analyze", "heads", lake, "--csv", lake], "inside the lake"),
        (["analyze", "heads", lake, "--csv", tmp_path / "file"], "file is a file; name another place"),
        (["problems", "--out", tmp_path / "file"], "name another place"),
        (["problems", "--out", tmp_path / "loop"], "loop: Too many levels of symbolic links; name another place"),
    ):
        code, _, error = call(*words)
        assert (code, message in error) == (2, True), error
    assert sorted(path.name for path in lake.iterdir()) == ["m", "zarr.json"]


def test_what_a_user_made_is_not_written_over(call, tmp_path):
    words = ["problems", "--stories", "3", "--out", tmp_path / "data"]
    file = tmp_path / "data" / "stories.jsonl"
    assert call(*words)[:2] == call(*words)[:2] == (0, f"{file}: 3 problems\n")
    mine = file.read_text() + '{"question": "Mine?", "answer": "1"}\n'
    file.write_text(mine)
    for more in ([], ["--seed", "1"]):
        code, _, error = call(*words, *more)
        assert (code, "stories.jsonl is there and holds something else" in error) == (2, True)
    assert ([file.name for file in file.parent.iterdir()], file.read_text()) == (["stories.jsonl"], mine)


def test_what_lets_one_in_at_an_address_is_not_printed(capsys):
    for url, shown in (
        ("http://me:secret@host:9/a.lake", "http://***@host:9/a.lake is gone"),
        ("s3://b/a.lake?token=secret", "s3://b/a.lake?*** is gone"),
        ("a@b/what?no=3.lake", "a@b/what?no=3.lake is gone"),
    ):
        with pytest.raises(SystemExit):
            shell.fail(f"{url} is gone", 1)
        assert capsys.readouterr().err == f"lake: {shown}\n"


def test_a_lake_of_another_model_is_left_alone(call, data, tmp_path):
    lake = tmp_path / "a.lake"
    assert call(*arguments(CODI, data, lake))[0] == 0
    before = {path: path.read_bytes() for path in lake.rglob("*") if path.is_file()}
    for extra in ({"arch": "llama"}, {"dtype": "float32"}, {"capture": "full"}):
        code, _, err = call(*arguments(CODI, data, lake, **extra))
        assert code == 2
        assert err.count("\n") == 1
        assert any(word in err for word in ("weights", "dtype", "capture")), err
    data.write_text(json.dumps(GOOD[0]))
    code, _, err = call(*arguments(CODI, data, lake))
    assert code == 2
    assert "sha256" in err
    assert before == {path: path.read_bytes() for path in lake.rglob("*") if path.is_file()}


def test_folders_that_are_no_lake(call, data, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    code, _, err = call(*arguments(CODI, data, tmp_path / "notes"))
    assert code == 2
    assert "no lake" in err
    code, _, err = call("info", tmp_path / "absent")
    assert code == 2
    assert "no lake" in err
    assert call(*arguments(CODI, data, tmp_path / "lakes" / "a.lake"))[0] == 0
    code, _, err = call("verify", tmp_path / "lakes")
    assert (code, err.count("\n")) == (2, 1)
    assert f"no lake, but has one in it: {tmp_path}/lakes/a.lake" in err


def test_the_command_is_installed():
    program = Path(sys.executable).parent / "lake"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("activation-lake ")


def test_a_module_of_ones_own_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "extract.py").touch()
    done = subprocess.run([sys.executable, "-m", "lake"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "extract.py") in done.stderr


def test_stopped_while_it_is_imported_is_one_line():
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import lake\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lake: stopped before anything was begun\n")
