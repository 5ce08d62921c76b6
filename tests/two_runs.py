"""A lake of two models with a run each, the same with results, and what a refusal looks like."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from called import run_lake
from synthetic import make_model, make_run, write_run

COMMANDS = {
    "heads": ("--resamples", 20, "--top", 4),
    "attention": ("--resamples", 20),
    "lens": (),
    "correlate": ("--permutations", 20, "--resamples", 20),
    "probes": ("--target", "operation", "--layers", 1, "--positions", "bot,ct0", "--resamples", 20, "--controls", 1),
    "sae": ("--epochs", 1, "--features", 8, "--k", 2),
}


def two_runs(path: Path) -> Path:
    """A lake of two models, a run each."""
    for seed, name in enumerate(("one/problems", "two/problems")):
        model = make_model(seed=seed)
        write_run(path, make_run(name=name, n_example=30, twins=True, seed=seed, model=model), model)
    return path


def make_analysed(folder: Path) -> None:
    """Results of each kind beside one of the runs, and what the commands that made them printed."""
    path, printed = two_runs(folder / "a.lake"), {}
    for name, options in COMMANDS.items():
        with redirect_stdout(StringIO()) as out:
            assert run_lake("analyze", name, path, "one/problems", *options) == 0
        printed[name] = out.getvalue()
    (folder / "printed.json").write_text(json.dumps(printed))


def refused(done: tuple[int, str, str], *words: str) -> None:
    """A user's mistake: exit 2, one line that has these words, and nothing on standard output."""
    code, out, err = done
    assert (code, out, err.count("\n")) == (2, "", 1), done
    assert all(word in err for word in words), err
