"""Make ``sections.tar.xz``: a lake of a few problems with a result of every kind that the page has a section for.

``python tests/data/make_sections.py`` runs the commands again, after what a result holds has changed; some minutes.
Figures of results are kept to three digits and weights are left out, so that the archive stays small.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from store import Lake, open_lake

MODELS = ("small-gpt2", "small-gpt2-decodable")
DATA = {"T": "hard", "P": "pairs"}
COMMANDS = """
analyze lens L T
analyze probes L T --target correct --layers 1 --positions bot,ct0,ct1 --permutations 20
analyze probes L T --target intermediate_result --layers 1 --positions bot,ct0,ct1 --permutations 20
analyze probes L T --target operation --layers 1 --positions bot,ct0,ct1 --permutations 20
analyze attention L T --resamples 20
analyze heads L T --resamples 20
analyze geometry L T --resamples 10 --shuffles 4
analyze traces L T --permutations 4
analyze similarity L T --permutations 10 --resamples 10
analyze stability L T --resamples 10
analyze depth L T
analyze sae L T --layers 1 --positions ct1 --expansion 1 --epochs 1
analyze features L T
analyze sae L T --scope crosscoder --layers 1 --positions ct1 --expansion 1 --epochs 1
analyze features L T --resamples 10 --permutations 10
analyze errors L T --resamples 20
analyze attribution L T --resamples 20
analyze transfer L T --layers 1 --positions ct0,ct1
reenter features L T1 --limit 12 --draws 1
reenter features L T2 --limit 12 --draws 1
reenter jacobian L T --fit 8
analyze lens L T --lens tuned,jacobian
reenter ablate L T --limit 12
reenter ablate L T --limit 12 --sets counts
reenter cross L T --limit 40
reenter corrupt L T --limit 12 --corruptions mean,zero
reenter heads L T --limit 12
reenter edges L T --limit 12
reenter steer L T --limit 12
reenter gradients L T --limit 12 --steps 4
reenter graph L T --limit 12
reenter depth L T --limit 12 --beyond 1
reenter edit L T --limit 20
reenter subspace L T --limit 20
reenter patch L P --limit 12 --sites latent_embedding
reenter patch L P --limit 12 --sites latent_embedding --into clean
reenter transplant L T1 --source S --limit 12
reenter attribute L P --limit 12 --exact 8
analyze correlate L T
analyze compare L T
analyze verdict L T
"""


def lake(*words: str) -> None:
    """Run a command; what a lake of few problems refuses is said, and its section is left without."""
    done = subprocess.run([sys.executable, "-m", "lake", *words], check=False, capture_output=True, text=True)
    print(done.returncode, *words, done.stderr[-300:] if done.returncode else "", flush=True)  # noqa: T201


def extract(path: Path, folder: Path, n_problem: int, n_half: int) -> None:
    """Runs of both models over some problems and pairs."""
    for model in MODELS:
        for data, limit in (("hard.jsonl", n_problem), ("pairs.json", n_half)):
            lake("extract", "--model", f"{model}={model}", "--data", str(folder / data), "--lake", str(path),
                 "--limit", str(limit), "--max-new-tokens", "8", "--capture", "latent+parts")  # fmt: skip


def rounded(data: xr.Dataset) -> xr.Dataset:
    """A result without weights, its figures to three digits."""
    data = data.drop_vars([name for name, variable in data.variables.items() if "hidden" in variable.dims])
    for name, values in data.data_vars.items():
        if values.dtype.kind == "f":
            exact = values.values.astype("float64")
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                scale = 10.0 ** (2 - np.floor(np.log10(np.abs(exact))))
                near = np.where(np.isfinite(scale), np.round(exact * scale) / scale, exact)
            data[name] = values.copy(data=near.astype("float32"))
    return data


def pack(full: Lake, path: Path) -> None:
    """The same results, rounded, in a lake of the same problems and two pairs."""
    small = open_lake(path)
    for result in full.results():
        data = rounded(full.open_result(result.name))
        small.write_result(result.kind, data, runs=list(result.runs), spec=dict(result.spec))
    with tarfile.open(Path(__file__).with_name("sections.tar.xz"), "w:xz", preset=9) as archive:
        archive.add(path, path.name)


def main() -> None:
    """Problems, runs, results, archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, small = folder / "full.lake", folder / "sections.lake"
        lake("problems", "--out", str(folder), "--pairs", "16")
        extract(full, folder, 40, 32)
        runs = {
            "L": [str(full)],
            "T": [f"{model}/hard" for model in MODELS],
            "T1": [f"{MODELS[0]}/hard"],
            "T2": [f"{MODELS[1]}/hard"],
            "S": [f"{MODELS[1]}/hard"],
            "P": [f"{model}/pairs" for model in MODELS],
        }
        for line in COMMANDS.strip().splitlines():
            lake(*(word for part in line.split() for word in runs.get(part, [part])))
        extract(small, folder, 40, 2)
        pack(open_lake(full), small)


if __name__ == "__main__":
    main()
