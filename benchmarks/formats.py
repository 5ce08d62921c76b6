"""Bytes of the same captured thoughts in a lake and in the formats that people keep activations in.

    python benchmarks/formats.py [gpt2] [smollm2] [--questions N]

One batch of questions of different lengths, thoughts and answers, is captured in full by this project into a lake and
by hand; both are the same (``benchmarks/extraction.py`` checks it). What was captured by hand is written in each
format: padded as it comes out of a batch, or question by question without padding where a format is used that way. A
lake also holds checksums of every chunk, the record, texts and coordinates, which are counted; not the model's
read-out.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from beside.sides import Side, peers_python, versions
from extraction import CASES, NAMES_OF, write_job
from results import keep, paragraph

KINDS = (
    "npz, float16, padded", "npz compressed, float16, padded", "safetensors, float16, padded",
    "pickle, float32, a file a question", "JSON, a file a question", "Arrow file, float16, a row a question",
    "Parquet, zstd, split bytes, float16, a row a question", "HDF5, gzip and shuffle, float16, a group a question",
)  # fmt: skip


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Write one model's batch in every format, print and keep the table."""
    ours = write_job(CASES[name], folder, arguments)
    (folder / "kept").mkdir()
    hand = Side("by_hand.py", folder / "job")
    hand("batched", out=str(folder / "kept"))
    hand.end()
    lake = ours("extraction", out=str(folder / "x.lake"))
    ours.end()
    stated = json.loads((folder / "job" / "job.json").read_text())
    after = stated["n_latent"] + len(stated["closing"]) + stated["n_answer"]
    assert len(stated["batches"]) == 1
    lengths = [len(stated["prompts"][index]) + after for index in stated["batches"][0]]
    writers = Side("writers.py", folder / "kept" / "0.npz", json.dumps(lengths), python=peers_python(), path="")
    n, run = len(lengths), folder / "x.lake" / "m" / "questions"
    ours_bytes = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    rows: list[dict[str, object]] = [{"format": "a lake", "MB a question": ours_bytes / n / 1e6}]
    for kind in KINDS:
        out = folder / "out"
        out.mkdir()
        done = writers("write", kind=kind, out=str(out))
        rows.append(
            {
                "format": kind,
                "MB a question": done["value"] / n / 1e6,
                "times ours": done["value"] / ours_bytes,
                "s of processors to write, a question": done["processor"] / n,
            }
        )
        subprocess.run(["rm", "-r", out], check=True)
    entropy = writers("entropy")["value"]
    writers.end()
    least = sum(size for _, size in entropy.values())
    rows.append(
        {
            "format": "entropy of the bytes, padding left out",
            "MB a question": least / n / 1e6,
            "times ours": least / ours_bytes,
        }
    )
    attention = sum(path.stat().st_size for path in (run / "attention").rglob("*") if path.is_file())
    title = f"Bytes of what was captured of {NAMES_OF[name]}"
    text = (
        paragraph(__doc__, 2)
        + f" {n} questions of {min(lengths)} to {max(lengths)} places; activations are {lake['value'] / n / 1e6:.2f} MB"
        " of the lake's. torchlens writes padded safetensors (its extraction of a data set), SAELens and Hugging Face's"
        " data sets Arrow files."
        f" Attention is {attention / n / 1e6:.2f} MB of them."
        " What is smaller than a lake compresses states by split bytes; the lake writes them as they are but for"
        " padding, so that a row of them is read and checked without the rest. Coding bytes one by one, high and low"
        f" ones apart, does not go below their entropy, the last row: {entropy['states'][0]:.1f} bits of 16 for a value"
        f" of the states, {entropy['states'][1] / n / 1e6:.2f} MB a question, and {entropy['attention'][0]:.1f} for"
        f" attention that is not zero, {entropy['attention'][1] / n / 1e6:.2f} MB."
    )
    keep(f"formats-{name}", title, rows, text=text, versions=versions(peers_python(), "h5py", "pyarrow", "safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", choices=[*NAMES_OF, []], help="gpt2 and smollm2 if none is named")
    parser.add_argument("--questions", type=int, default=8)
    arguments = parser.parse_args()
    arguments.batch_size, arguments.max_new_tokens, arguments.threads = arguments.questions, 8, 1
    for name in arguments.model or ["gpt2", "smollm2"]:
        with tempfile.TemporaryDirectory() as place:
            measure(name, Path(place), arguments)


if __name__ == "__main__":
    main()
