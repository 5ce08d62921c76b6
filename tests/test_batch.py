"""Several runs from one plan file: what it may say, and that each run is what its own command makes."""

import json
from pathlib import Path

import pytest

from extract.run.batch import read_plan, words_of
from schemas import UsageError
from store import open_lake

CODI = Path(__file__).parent / "data" / "codi_oracle"


def plan(tmp_path, text):
    (tmp_path / "plan.toml").write_text(text)
    return str(tmp_path / "plan.toml")


def test_models_times_data_sets_with_settings_of_their_own(tmp_path):
    path = plan(tmp_path, """
        lake = "a.lake"
        limit = 5
        [[run]]
        model = ["one=small-gpt2", "two=small-llama"]
        data = ["a.jsonl", "b=c.jsonl"]
        [[run]]
        model = "three=small-gpt2"
        data = "a.jsonl"
        capture = "full"
        limit = 7
        memory = 2
        skip_long = true
    """)  # fmt: skip
    runs = read_plan(path)
    assert [(run.model, run.data, run.limit, run.capture) for run in runs] == [
        ("one=small-gpt2", "a.jsonl", 5, "latent"), ("one=small-gpt2", "b=c.jsonl", 5, "latent"),
        ("two=small-llama", "a.jsonl", 5, "latent"), ("two=small-llama", "b=c.jsonl", 5, "latent"),
        ("three=small-gpt2", "a.jsonl", 7, "full"),
    ]  # fmt: skip
    words = words_of(runs[-1])
    assert words[:8] == ["lake", "extract", "--model", "three=small-gpt2", "--data", "a.jsonl", "--lake", "PATH"]
    assert set(words[8:]) == {"--skip-long", "--memory", "2.0", "--capture", "full", "--limit", "7"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lake = ", "not TOML"),
        ('lake = "a"\nmodel = "m"', "data is missing"),
        ('lake = "a"\nmodel = "m"\ndata = "d"\ncaptur = "full"', "no setting 'captur'; did you mean 'capture'"),
        ('lake = "a"\nmodel = "m"\ndata = "d"\ncapture = "ful"', "ful is not one of latent, full"),
        ('lake = "a"\nmodel = "m"\ndata = "d"\nlimit = "5"', "limit is '5'; it must be a whole number"),
        ('lake = "a"\nmodel = "m"\ndata = "d"\nskip_long = 1', "true or false"),
        ('lake = "a"\nmodel = "m"\ndata = []', "data is an empty list"),
        ('lake = "a"\nmodel = "m"\ndata = ["d.jsonl", "x/d.jsonl"]', "two runs called m/d"),
        ('lake = "a"\nrun = 3', "no table"),
    ],
)
def test_mistakes_of_a_plan_are_one_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as raised:
        read_plan(plan(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_runs_of_a_plan_are_those_of_their_commands(call, tmp_path):
    for name, answer in (("numbers", 7), ("words", "red")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "Tom has 7?", "answer": answer}) + "\n")
    base, checkpoint = CODI / "base-gpt2", CODI / "codi-gpt2"
    shared = f'lake = "{tmp_path}/a.lake"\nbase = "{base}"\nmodel = "m={checkpoint}"\nmax_new_tokens = 3\n'
    path = plan(tmp_path, f'{shared}data = ["{tmp_path}/numbers.jsonl", "{tmp_path}/words.jsonl"]\n')
    code, out, err = call("batch", path, "--json")
    assert code == 0, err
    assert [each["run"] for each in json.loads(out)] == ["m/numbers", "m/words"]
    made = open_lake(tmp_path / "a.lake")
    assert [made.attributes(run)["answer_kind"] for run in made.runs()] == ["number", "text"]
    words = [str(tmp_path / "b.lake") if word == "PATH" else word
             for word in made.attributes("m/words")["provenance"]["command"][1:]]  # fmt: skip
    assert call(*words)[0] == 0
    other = open_lake(tmp_path / "b.lake")
    assert other.attributes("m/words")["fingerprint"] == made.attributes("m/words")["fingerprint"]

    (tmp_path / "words.jsonl").write_text('{"question": "a?"}\n')
    code, out, err = call("batch", plan(tmp_path, (tmp_path / "plan.toml").read_text().replace("a.lake", "c.lake")))
    assert (code, out) == (2, "")
    assert "words.jsonl line 1" in err
    assert not (tmp_path / "c.lake").exists()
