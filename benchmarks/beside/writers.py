"""One batch's states and attention written in other formats, as each library's documentation does it.

    python writers.py NPZ LENGTHS

NPZ is a batch that :class:`job.Kept` saved, LENGTHS how many columns each question has, padding left out, as JSON.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Writers:
    """Everything padded as it was captured, and question by question without padding."""

    def __init__(self, npz: str, lengths: list[int]) -> None:
        with np.load(npz) as kept:
            self.padded: dict[str, Array] = {name: kept[name] for name in kept.files}
        n_column = self.padded["token"].shape[1]
        self.questions: list[dict[str, Array]] = []
        for row, length in enumerate(lengths):
            here = slice(n_column - length, n_column)
            self.questions.append(
                {
                    "hidden_state": np.ascontiguousarray(self.padded["hidden_state"][row, :, here]),
                    "final_state": np.ascontiguousarray(self.padded["final_state"][row, here]),
                    "attention": np.ascontiguousarray(self.padded["attention"][row, :, :, here, here]),
                    "token": np.ascontiguousarray(self.padded["token"][row, here]),
                }
            )

    def write(self, kind: str, out: str) -> int:
        """Write one kind into a folder; bytes."""
        KINDS[kind](self, Path(out))
        return sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())

    def entropy(self) -> dict[str, list[float]]:
        """Of states, and of attention to the past: bits a value of its high and low bytes' entropy; bytes of that."""
        states = [question[name].ravel() for question in self.questions for name in ("hidden_state", "final_state")]
        attention = [question["attention"][question["attention"] > 0] for question in self.questions]
        found = {}
        for name, parts in (("states", states), ("attention", attention)):
            halves = np.concatenate(parts).view(np.uint8).reshape(-1, 2).T
            shares = [np.bincount(half) / len(half) for half in halves]
            bits = sum(float(-(share[share > 0] * np.log2(share[share > 0])).sum()) for share in shares)
            found[name] = [bits, bits / 8 * halves.shape[1]]
        return found

    def npz(self, out: Path) -> None:
        np.savez(out / "batch.npz", **self.padded)

    def npz_compressed(self, out: Path) -> None:
        np.savez_compressed(out / "batch.npz", **self.padded)

    def safetensors(self, out: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.padded, out / "batch.safetensors")

    def pickle(self, out: Path) -> None:
        for number, question in enumerate(self.questions):
            wide = {name: value.astype("float32") for name, value in question.items()}
            (out / f"{number}.pkl").write_bytes(pickle.dumps(wide))

    def json(self, out: Path) -> None:
        for number, question in enumerate(self.questions):
            plain = {name: value.astype("float32").tolist() for name, value in question.items()}
            (out / f"{number}.json").write_text(json.dumps(plain))

    def hdf5(self, out: Path) -> None:
        import h5py

        with h5py.File(out / "batch.h5", "w") as file:
            for number, question in enumerate(self.questions):
                group = file.create_group(str(number))
                for name, value in question.items():
                    group.create_dataset(name, data=value, compression="gzip", shuffle=True)

    def _table(self) -> Any:
        import pyarrow as pa

        return pa.table(
            {
                name: pa.array(
                    [question[name].reshape(-1) for question in self.questions],
                    pa.large_list(pa.from_numpy_dtype(self.padded[name].dtype)),
                )
                for name in self.padded
            }
        )

    def arrow(self, out: Path) -> None:
        import pyarrow as pa

        table = self._table()
        with pa.OSFile(str(out / "batch.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def parquet(self, out: Path) -> None:
        import pyarrow.parquet as pq

        pq.write_table(
            self._table(), out / "batch.parquet", compression="zstd", column_encoding="BYTE_STREAM_SPLIT",
            use_dictionary=False,
        )  # fmt: skip


KINDS: dict[str, Callable[[Writers, Path], None]] = {
    "npz, float16, padded": Writers.npz,
    "npz compressed, float16, padded": Writers.npz_compressed,
    "safetensors, float16, padded": Writers.safetensors,
    "pickle, float32, a file a question": Writers.pickle,
    "JSON, a file a question": Writers.json,
    "Arrow file, float16, a row a question": Writers.arrow,
    "Parquet, zstd, split bytes, float16, a row a question": Writers.parquet,
    "HDF5, gzip and shuffle, float16, a group a question": Writers.hdf5,
}


if __name__ == "__main__":
    from work import serve

    writers = Writers(sys.argv[1], json.loads(sys.argv[2]))
    serve({"write": writers.write, "entropy": writers.entropy})
