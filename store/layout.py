"""Layout arithmetic: axes, chunks and shards of a run. The only place that decides a shape."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from schemas import FORMAT_VERSION, RUN_VARIABLES, AnswerKind, Places, UsageError, Variable, latent_labels
from schemas.spec import captured_parts, captures_all
from schemas.vocabulary import ITERATIONS, PARTS
from store.blocks import BlockArray

# These numbers are part of the format: a lake's shapes follow from them, so another value needs another format version.
BLOCK = 32
"""Of its multiples are question positions, so ``bot`` starts a block; attention of format 1 is in squares of it."""
QUERY_BLOCK, KEY_BLOCK = 8, 64
"""Queries and keys per chunk of attention: ``bot``, six thoughts and ``eot`` are one block of queries."""
SHARD_BYTES = 2**30
"""Default bound of the raw bytes of one shard of all arrays together: what a writer holds per shard in flight."""
MAX_SHARD_EXAMPLES = 256
INNER_BYTES = 2**20
"""Aim for the raw size of one inner chunk; far smaller ones cost more in calls than in bytes."""
ATTENTION_BYTES = 2**17
"""The same for attention, of which one problem alone is read by whole chunks, as it is compressed."""
COLUMN_CHUNK = 8192

# Zstandard finds the zeros of attention; float16 states do not compress, so they get the codec that gives up fastest
# and still folds padding away. The checksum is last, over the bytes as they lie on disk.
ATTENTION_CODECS = (ZstdCodec(level=1), Crc32cCodec())
COLUMN_CODECS = (ZstdCodec(level=1), Crc32cCodec())


def state_codecs(itemsize: int) -> tuple[Any, ...]:
    """Codecs of hidden states of the given width in bytes."""
    return (BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=itemsize), Crc32cCodec())


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple that is not below a value."""
    return -(-value // multiple) * multiple


def _power_of_two_below(value: float) -> int:
    return 1 << max(0, math.floor(math.log2(max(value, 1))))


def _one_after_the_other(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Slices of these sizes, each beginning where the one before ends."""
    ends = accumulate(sizes.values())
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """Shape and partition of one array."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    fill: float | int | str | bool
    codecs: tuple[Any, ...]

    @property
    def example_bytes(self) -> int:
        """Raw bytes of one example; 64 stand in for a text."""
        itemsize = 64 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return math.prod(self.shape[1:]) * itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks of one shard along each axis; 1 where there are no shards."""
        return tuple(whole // part for whole, part in zip(self.shards or self.chunks, self.chunks, strict=True))

    @property
    def inner_chunks(self) -> int:
        """Chunks in one shard."""
        return math.prod(self.grid)

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index: offset and length of each chunk, and a checksum."""
        return 0 if self.shards is None else 16 * self.inner_chunks + 4

    @property
    def has_rows(self) -> bool:
        """Whether the record may have checksums of single examples of a chunk: of states, which hardly compress."""
        return self.shards is not None and isinstance(self.codecs[0], BloscCodec)

    @property
    def row_grid(self) -> tuple[int, ...]:
        """Chunks of one shard along each axis, and the rows of each: its examples."""
        return (*self.grid, self.chunks[0])

    @property
    def together(self) -> int:
        """Chunks along the first axis that lie side by side in a shard's file, for readers of all examples."""
        size = math.prod(self.chunks) * np.dtype(self.dtype).itemsize
        return min(_power_of_two_below(INNER_BYTES / size), self.grid[0])

    def key(self, shard: int) -> str:
        """Key of a shard's file below the array."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLayout:
    """Axes of a run, from which every array's shape, chunks and shards follow."""

    n_example: int
    n_layer: int
    n_head: int
    hidden: int
    n_latent: int
    longest_question: int
    """Tokens before ``bot`` in the longest question."""
    n_answer: int
    """Answer positions, the end token's included."""
    capture: str
    dtype: str
    shard_bytes: int = SHARD_BYTES
    """Bound of the raw bytes of one shard."""
    n_closing: int = 1
    """Tokens that close the thoughts."""
    bot: bool = True
    """Whether a marker stands where thinking begins."""
    n_round: int = 0
    """Rounds in which all thoughts are computed side by side; 0: one after another."""
    answer_kind: AnswerKind = "number"
    """Numbers are stored as such, answers of other kinds as text."""
    format: int = FORMAT_VERSION
    """Format of the lake; 1: attention in chunks of many problems, no checksums of rows."""

    @property
    def places(self) -> Places:
        """Places between question and answer."""
        return Places(self.n_latent, self.n_closing, self.bot)

    @property
    def n_question(self) -> int:
        """Question positions on the axes: a multiple of the block, so that ``bot`` starts one."""
        return round_up(max(self.longest_question, 1), BLOCK)

    @property
    def key_positions(self) -> list[str]:
        """Labels of the key axis."""
        return self.places.labels(self.n_question, self.n_answer)

    @property
    def positions(self) -> list[str]:
        """Labels of the query axis: those captured."""
        return self.key_positions if captures_all(self.capture) else self.key_positions[self.n_question :]

    @property
    def sharded(self) -> tuple[str, ...]:
        """Variables that are written shard by shard, in their order."""
        left_out = set(PARTS) - set(captured_parts(self.capture)) | set(() if self.n_round else ITERATIONS)
        return tuple(name for name in SHARDED_VARIABLES if name not in left_out)

    @property
    def latents(self) -> list[str]:
        """Labels of the thoughts."""
        return latent_labels(self.n_latent)

    def _sizes(self) -> dict[str, int]:
        return {
            "example": self.n_example,
            "layer": self.n_layer,
            "head": self.n_head,
            "hidden": self.hidden,
            "latent": self.n_latent,
            "iteration": self.n_round,
            "position": len(self.positions),
            "key_position": len(self.key_positions),
        }

    @property
    def example_bytes(self) -> int:
        """Raw bytes of one example in all stored activations."""
        sizes, itemsize = self._sizes(), np.dtype(self.dtype).itemsize
        variables = [RUN_VARIABLES[name] for name in self.sharded]
        stored = [variable for variable in variables if variable.dtype == "stored"]
        return sum(math.prod(sizes[dim] for dim in variable.dims[1:]) * itemsize for variable in stored)

    @property
    def shard_examples(self) -> int:
        """Examples per shard: a power of two that keeps one shard of all arrays within ``shard_bytes``."""
        fits = _power_of_two_below(self.shard_bytes / self.example_bytes)
        return min(fits, MAX_SHARD_EXAMPLES, 1 << math.ceil(math.log2(max(self.n_example, 1))))

    @property
    def n_shard(self) -> int:
        """Number of shards."""
        return -(-self.n_example // self.shard_examples)

    def shard_slice(self, shard: int) -> slice:
        """Examples of a shard."""
        return slice(shard * self.shard_examples, min((shard + 1) * self.shard_examples, self.n_example))

    def variable(self, name: str) -> Variable:
        """What the vocabulary says of an array, for answers of this run's kind."""
        variable = RUN_VARIABLES[name]
        if name == "predicted_answer" and self.answer_kind != "number":
            return replace(variable, dtype="text", units="", long_name="answer given, empty: none", fill="")
        return variable

    def arrays(self) -> dict[str, ArrayLayout]:
        """Layout of each array that is written shard by shard."""
        sizes, stored = self._sizes(), np.dtype(self.dtype)
        examples = self.shard_examples
        layouts = {}
        for name in self.sharded:
            variable = self.variable(name)
            shape = tuple(sizes[dim] for dim in variable.dims)
            dtype = {"stored": self.dtype, "text": "string"}.get(variable.dtype, variable.dtype)
            chunk = dict(zip(variable.dims, shape, strict=True)) | {"example": examples}
            codecs: tuple[Any, ...] = COLUMN_CODECS
            shards: tuple[int, ...] | None = None
            if name == "attention":
                query, key, aim = QUERY_BLOCK, KEY_BLOCK, ATTENTION_BYTES
                if self.format == 1:
                    query, key, aim = BLOCK, BLOCK, INNER_BYTES
                block = min(query, sizes["position"]) * key
                inner = _power_of_two_below(aim / (sizes["head"] * block * stored.itemsize))
                chunk |= {"example": min(inner, examples), "layer": 1, "position": query, "key_position": key}
                codecs = ATTENTION_CODECS
            elif variable.dtype == "stored":
                inner = _power_of_two_below(INNER_BYTES / (sizes["hidden"] * stored.itemsize))
                chunk |= {"example": min(inner, examples), "layer": 1, "position": 1, "latent": 1, "iteration": 1}
                codecs = state_codecs(stored.itemsize)
            chunks = tuple(chunk[dim] for dim in variable.dims)
            if variable.dtype == "stored":
                whole = (examples, *shape[1:])
                # Of a model without thoughts there is nothing fed; its shards still have a place.
                shards = tuple(round_up(max(size, 1), part) for size, part in zip(whole, chunks, strict=True))
            layouts[name] = ArrayLayout(
                name=name,
                dims=variable.dims,
                shape=shape,
                chunks=chunks,
                shards=shards,
                dtype=dtype,
                fill=variable.fill,
                codecs=codecs,
            )
        return layouts

    def empty(self, n_example: int) -> dict[str, Any]:
        """Empty arrays of some examples: a :class:`BlockArray` for activations, else filled with the fill value."""
        arrays: dict[str, Any] = {}
        for name, array in self.arrays().items():
            shape = (n_example, *array.shape[1:])
            if array.shards is not None:
                arrays[name] = BlockArray(shape, array.dtype, array.fill)
            else:
                arrays[name] = np.full(shape, array.fill, dtype=object if array.dtype == "string" else array.dtype)
        return arrays

    def checksum_places(self) -> dict[str, slice]:
        """Where the record keeps the checksums of each array's chunks, in order of the axes, along its ``chunk``."""
        arrays = self.arrays().items()
        return _one_after_the_other({name: array.inner_chunks for name, array in arrays if array.shards is not None})

    def row_places(self) -> dict[str, slice]:
        """Where the record keeps checksums of each array's rows, in order of its ``row_grid``, along its ``row``."""
        arrays = self.arrays().items() if self.format > 1 else ()
        return _one_after_the_other({name: math.prod(array.row_grid) for name, array in arrays if array.has_rows})

    def to_json(self) -> dict[str, Any]:
        """Fields as plain JSON values, without newer fields whose value is the one that the first lakes had."""
        values = asdict(self)
        usual_values = {"n_closing": 1, "bot": True, "n_round": 0, "answer_kind": "number", "format": 1}
        for name, usual in usual_values.items():
            if values[name] == usual:
                del values[name]
        return values

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "RunLayout":
        """Inverse of :meth:`to_json`.

        Raises
        ------
        UsageError
            If a newer version made the run: its format is newer, or it says more than this version knows.
        """
        unknown = sorted(fields.keys() - cls.__dataclass_fields__.keys())
        stated = fields.get("format", 1)
        if unknown or stated > FORMAT_VERSION:
            what = f"says {', '.join(unknown)} of it" if unknown else f"made it in lake format {stated}"
            raise UsageError(f"a run's layout is not known here: a newer version {what}. Update activation-lake")
        return cls(**{"format": 1, **fields})


SHARDED_VARIABLES = (
    "hidden_state",
    "final_state",
    "latent_embedding",
    "attention",
    "token",
    "generated_text",
    "predicted_answer",
    "correct",
    "answer_logprob",
    *PARTS,
    *ITERATIONS,
)
"""What the model makes, in the order in which a shard is written; all else is known when the run is created."""
