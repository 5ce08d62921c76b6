"""The command line in daily use: help, version, misspelt words, results shown again, removal, queries, top places."""

from importlib.metadata import version

import pytest
from synthetic import make_model, make_run, write_run

import lake as command_line
from schemas import Intervention, UsageError, nearest


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            command_line.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def refused(done, *words):
    """A user's mistake: exit 2, one line that has these words, and nothing on standard output."""
    code, out, err = done
    assert (code, out, err.count("\n")) == (2, "", 1), done
    assert all(word in err for word in words), err


def two_runs(path):
    """A lake of two models, a run each."""
    for seed, name in enumerate(("one/problems", "two/problems")):
        model = make_model(seed=seed)
        write_run(path, make_run(name=name, n_example=30, twins=True, seed=seed, model=model), model)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake that is only read."""
    return two_runs(tmp_path_factory.mktemp("lakes") / "made.lake")


def test_no_command_prints_help_and_the_version_is_told(call):
    for words, shown in (((), ("extract", "--version")), (("analyze",), ("heads", "lens")), (("reenter",), ("patch",))):
        code, out, err = call(*words)
        assert (code, err) == (0, "")
        assert all(word in out for word in ("Usage: lake", *shown))
    assert call("--version") == (0, f"activation-lake {version('activation-lake')}, lake format 1\n", "")
    assert "--capture latent|full" in call("extract", "--help")[1]


def test_a_misspelt_word_is_answered_with_the_nearest(call, made):
    refused(call("extarct"), "'extract'")
    refused(call("info", made, "--jsn"), "'--json'")
    refused(call("analyze", "heads", made, "one/problem"), "'one/problems'")
    refused(call("analyze", "heads", made, "--convention", "thought"), "'thoughts'")
    refused(call("analyze", "probes", made, "--positions", "cto"), "'ct0'")
    refused(call("analyze", "probes", made, "--layers", "3"), "did you mean 2?")
    refused(call("verify", made, "tow/problems"), "'two/problems'")
    with pytest.raises(UsageError, match=r"did you mean 'ct5'\?"):
        Intervention(site="hidden_state", operation="zero", layers=(0,), positions=("ct6",)).check(n_layer=1, n_head=1)
    with pytest.raises(UsageError, match=r"did you mean 'resample'\?"):
        Intervention(site="hidden_state", operation="resampel", layers=(0,), positions=("ct0",))  # type: ignore[arg-type]


def test_nothing_is_offered_where_nothing_is_near():
    assert nearest("zebra", ["bot", "ct0"]) == nearest("x", []) == ""
    assert nearest("CT0", ["bot", "ct0"]) == "; did you mean 'ct0'?"
