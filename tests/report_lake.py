"""A small lake with something of everything, for the tests of comparison and report."""

import json
from pathlib import Path

import torch

from analyze.attention.shares import attention_summary
from analyze.compare.differences import compare
from analyze.heads.analysis import head_analysis
from analyze.lens.logit import logit_lens
from analyze.lens.summary import lens_summary, lens_tests
from extract.reenter import CorruptSettings, PatchSettings, corrupt, open_target, patch
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.problems import make_pairs, make_splits, write_pairs, write_problems
from schemas import RunSpec
from store import Lake, open_lake

torch.set_num_threads(1)
MODELS = ("small-gpt2", "small-gpt2-decodable")
N_PROBLEM, N_PAIR = 40, 12


def make_lake(folder: Path) -> Lake:
    """Both GPT-2 models over problems and pairs; heads, attention, lens, corruption, patching and the comparison."""
    problems = make_splits(0, {"test": {2: 14, 3: 13, 4: 13}})["test"]
    write_problems(problems, folder / "test.jsonl")
    write_pairs(make_pairs(N_PAIR, 0), folder / "pairs.json")
    path = folder / "toy.lake"
    spec = RunSpec(max_new_tokens=8, batch_size=16)
    for model in MODELS:
        for data in ("test.jsonl", "pairs.json"):
            extract(prepare(model, str(folder / data), path, spec), path)
    lake = open_lake(path)
    for model in MODELS:
        add_analyses(lake, model)
    runs = [f"{model}/test" for model in MODELS]
    lake.write_result("compare", compare(lake, runs, n_resample=50), runs=runs, spec={"resamples": 50})
    return lake


def add_analyses(lake: Lake, model: str) -> None:
    """Results of one model, as the commands keep them."""
    run = f"{model}/test"
    data = lake[run]

    def keep(kind: str, result, spec: dict, of: str = run) -> None:
        lake.write_result(kind, result.assign_attrs(run=of), runs=[of], spec=spec)

    keep("heads", head_analysis(data["attention"], n_resample=20).compute(), {"convention": "thoughts"})
    keep("attention", attention_summary(data["attention"], n_resample=20).compute(), {})
    lens = logit_lens(data, lake.model(model)).compute()
    keep("lens", lens_summary(lens), {"lens": "plain"})
    keep("lens_tests", lens_tests(lens["is_number"]), {"lens": "plain"})
    keep("corrupt", corrupt(open_target(lake, run), CorruptSettings(corruptions=("zero", "mean"))), {"seed": 0})
    pairs = f"{model}/pairs"
    keep("patch", patch(open_target(lake, pairs), PatchSettings(sites=("latent_embedding",))), {"seed": 0}, pairs)


def missing_of(result) -> list[str]:
    """What a comparison reports as missing from the lake."""
    return json.loads(result.attrs["missing"])
