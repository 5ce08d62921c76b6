"""What the small Coconut model and its controls can do, measured through ``lake extract`` and thoughts put back.

``python benchmarks/graph_models.py [--work DIR] [NAME...]`` writes 1,000 held-out problems and, for every step of
search, their twins that differ from that step on; extracts each model over them into ``DIR/small.lake``; measures from
the lake, and puts thoughts of the lake back into the model. It prints a table per model and writes ``DIR/NAME.json``.
``extract.small_models.graph_evaluate --json`` measures the same, under the same names, with code of its own; what is
in ``benchmarks/small_models`` was measured so. ``shortcuts.json`` is how well classifiers tell the answer that see one
step forwards and two backwards, and all words by place.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from small_models import answers_with, asked, extract_all, report

from extract.small_models.evaluate import Rate
from extract.small_models.graph_problems import DEPTH, KINDS, Graphs, draw_graphs, held_out_graphs, tell
from schemas.whole_files import write_json_lines
from store import open_lake

N_PROBLEM = 1000
SHIPPED = ["small-graph", "small-graph-pause", "small-graph-direct"]


def write_data(folder: Path) -> dict[str, Path]:
    """Write the held-out problems and their twins; returns the files by data set."""
    graphs = held_out_graphs("test", N_PROBLEM)
    sets = {"graph": graphs, **{f"twin-{step}": graphs.crossed(step) for step in range(1, DEPTH + 1)}}
    files = {name: folder / f"{name}.jsonl" for name in sets}
    for name, file in files.items():
        write_json_lines(file, tell(sets[name]))
    return files


def measure(name: str, checkpoint: str, lake_path: Path) -> dict[str, Rate]:
    """All figures of one model, from its runs over the problems and their twins."""
    lake = open_lake(str(lake_path))
    run = lake[f"{name}/graph"]
    gold = run["gold_answer"].values
    answered = run["predicted_answer"].values
    rates = {
        "accuracy": Rate.of(run["correct"].values),
        "answers with a word asked about": Rate.of((answered == gold) | (answered == run["other_answer"].values)),
    }
    n_latent = run.sizes.get("latent", 0)
    if not n_latent:
        return rates
    rates |= lenses(run, lake.model(name))
    fed = run["latent_embedding"].astype("float32").values
    every, rng = np.ones(len(gold), dtype=bool), np.random.default_rng(0)
    other = (np.arange(len(gold)) + rng.integers(1, len(gold), size=len(gold))) % len(gold)
    vectors: dict[str, Callable[[int], np.ndarray]] = {
        "zero": lambda k: np.zeros_like(fed[:, k]),
        "mean": lambda k: np.broadcast_to(fed[:, k].mean(0), fed[:, k].shape).copy(),
        "from another problem": lambda k: fed[other, k],
    }
    for label, make in vectors.items():
        for which, those in {"all": range(n_latent), **{f"ct{k}": (k,) for k in range(n_latent)}}.items():
            predicted = answers_with(checkpoint, run, {k: (every, make(k)) for k in those})
            rates[f"{which} {label}"] = Rate.of(predicted == gold)
    for step in range(1, DEPTH + 1):
        twin = lake[f"{name}/twin-{step}"]
        donor = twin["latent_embedding"].astype("float32").values
        for k in range(n_latent):
            predicted = answers_with(checkpoint, run, {k: (every, donor[:, k])})
            label = f"ct{k} of a twin that differs from step {step}: its answer"
            rates[label] = Rate.of(predicted == twin["gold_answer"].values)
    return rates


def lenses(run: xr.Dataset, model: xr.Dataset) -> dict[str, Rate]:
    """How often the two words that the unembedding reads first at a state are the two kinds reached next."""
    positions = ["bot", *(f"ct{k}" for k in range(DEPTH - 1))]
    states = run["final_state"].sel(position=positions).astype("float32").values
    read = np.argsort(states @ model["unembedding"].values.T, axis=-1)[..., -2:]
    words = np.char.strip(model["token_string"].values[read].astype(str))
    reached = np.stack([run["intermediate_text"].values, run["distractor"].values], -1).astype(str)
    right = (np.sort(words, -1) == np.sort(reached, -1)).all(-1)
    return {f"lens at {place}, both kinds reached": Rate.of(right[:, k]) for k, place in enumerate(positions)}


def features(graphs: Graphs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (where things stand and how often) and names (who stands where) of a question, and what is to be told.

    Places of the sentences of the person, of either word and of what leads to it, how far they are apart, how often the
    words are said, and all words in order: one step forwards and two backwards of the three that are needed.
    """
    rows = np.arange(len(graphs.asked))
    subject, what = graphs.edge
    person = len(KINDS) + graphs.person[rows, graphs.asked]
    first, second = graphs.candidate.T
    mentions = [np.sort(np.argsort(subject != person[:, None], axis=1, kind="stable")[:, :2], axis=1)]
    places = [(what == word[:, None]).argmax(1) for word in (first, second)]
    parents = [subject[rows, place] for place in places]
    above = [(what == parent[:, None]).argmax(1) for parent in parents]
    numbers = np.column_stack(
        [*mentions, *places, *above, places[0] - places[1], above[0] - above[1]]
        + [abs(place - mentions[0][:, k]) for place in (*places, *above) for k in (0, 1)]
        + [((subject == word[:, None]) | (what == word[:, None])).sum(1) for word in (first, second)]
    )
    names = np.column_stack([person, first, second, *parents, subject, what])
    return numbers, names, graphs.answer == first


def shortcuts(n_train: int = 20_000) -> dict[str, Rate]:
    """Accuracy of classifiers on the features that follow no step; a half if there is no shortcut."""
    train, test = draw_graphs(np.random.default_rng([0, 9]), n_train), held_out_graphs("test", N_PROBLEM)
    (numbers, names, label), (more, others, wanted) = features(train), features(test)
    boosted = HistGradientBoostingClassifier(random_state=0).fit(np.column_stack([numbers, names]), label)
    linear = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=500)).fit(names, label)
    return {
        "boosted trees": Rate.of(boosted.predict(np.column_stack([more, others])) == wanted),
        "logistic regression on words by place": Rate.of(linear.predict(others) == wanted),
        "the word named first": Rate.of(wanted),
    }


def main() -> None:
    """Extract, measure and print."""
    with asked(__doc__, SHIPPED) as (models, work):
        report("shortcuts", shortcuts(), work)
        files = write_data(work)
        for name, checkpoint in models.items():
            extract_all(name, checkpoint, files, work / "small.lake")
            report(name, measure(name, checkpoint, work / "small.lake"), work)


if __name__ == "__main__":
    main()
