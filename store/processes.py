"""Files of a shard encoded and written by processes of their own, so that Python's lock stays with the model."""

import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice, starmap
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

import numpy as np
from numcodecs import blosc

from schemas import LakeError
from store.blocks import BlockArray
from store.encode import EncodedPart, ShardFile, encode_part, part_bytes, parts_of, shard_file
from store.files import Piece, Replacement, write_beside
from store.layout import ArrayLayout

PROCESSES = 2
"""That write: one for states and one for attention."""
ENCODERS = max(1, min(8, len(os.sched_getaffinity(0)) // 2)) if hasattr(os, "sched_getaffinity") else 1
"""Processes of each that encode. Sixteen threads of one process use 1.4 cores: each chunk wants Python's lock."""
POLITE = 5
"""By how much encoders are nicer than the model, which is to find a core at once."""
SURROUNDINGS = {
    # Of glibc: freed memory is used again, as fresh memory costs more than what is copied into it.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    # No threads when it forks.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment of a process."""
PLACES = 2 * ENCODERS + 1
"""Parts of a file in memory at a time: one being written, one for each encoder, and as many waiting."""
END_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux."""
ALIGNMENT = 64
"""Bytes; where a block begins in shared memory."""
PROGRAM = "from store.processes import serve; serve()"
ENDED = "a process that {} has ended ({}); give the command again: what is committed is kept"


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """A block of a :class:`BlockArray` that lies in shared memory."""

    rows: np.ndarray
    corner: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Request:
    """A file to be written."""

    layout: ArrayLayout
    shape: tuple[int, ...]
    blocks: list[SharedBlock]
    path: Path


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a file."""

    path: Path | None
    """Beside its place; ``None``: all is fill, and there is no file."""
    size: int
    digest: bytes
    checksums: np.ndarray | None
    rows: np.ndarray | None


class ProcessFile(ShardFile):
    """A shard's file that a process encodes and writes; what is known of it is known then.

    Each block of ``values``, the shard's examples, is let go of once it has been copied.
    """

    def __init__(self, layout: ArrayLayout, values: BlockArray, processes: "FileProcesses") -> None:
        super().__init__()
        self._layout = layout
        self._values = values
        self._processes = processes
        self._digest = b""

    def put(self, files: Replacement, key: str) -> None:
        """Have the file put beside its place."""
        files.add_written(key, self._write)

    def _write(self, path: Path) -> Path | None:
        written = self._processes.write(self._layout, self._values, path)
        self.size, self._digest = written.size, written.digest
        self.checksums, self.rows = written.checksums, written.rows
        return written.path

    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return self._digest


class FileProcesses:
    """Processes that encode and write files of shards while this one launches a model.

    Each time a thread that encodes asks for Python's lock, a model whose kernels are launched from Python waits: on an
    H100 a LLaMA of 1B with threads beside it took 10.6 ms a question, 2.9 with nothing encoded (docs/gpu.md). Values
    reach a process through memory that both share and that is used again: fresh memory costs more than the copy. It
    belongs to no file system, so the small ``/dev/shm`` of containers does not bound it. Linux only.

    A process ends with the one that started it, however that ends, and leaves what a killed writer leaves. Each has
    encoders, processes of its own.
    """

    def __init__(self, n_process: int = PROCESSES) -> None:
        self._processes = [_Process() for _ in range(n_process)]
        self._free: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._free.put(process)

    def ids(self) -> list[int]:
        """Numbers by which the system knows the processes."""
        return [process.child.pid for process in self._processes]

    @staticmethod
    def possible() -> bool:
        """Whether this system has what is needed."""
        return hasattr(os, "memfd_create")

    def write(self, layout: ArrayLayout, values: BlockArray, path: Path) -> Written:
        """Have a free process write a file, and wait for it; called by several threads.

        Raises
        ------
        LakeError
            If the process was ended.
        OSError
            Whatever it could not write.
        """
        with self._borrowed() as process:
            return process.write(layout, values, path)

    @contextmanager
    def _borrowed(self) -> Iterator["_Process"]:
        process = self._free.get()
        try:
            yield process
        finally:
            self._free.put(process)

    def __enter__(self) -> "FileProcesses":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for process in self._processes:
            process.end()


class _Process:
    """A process, and the memory shared with it."""

    def __init__(self) -> None:
        self._file = os.memfd_create("lake-shard")
        self._memory: mmap.mmap | None = None
        # A group of its own: Ctrl-C is for the one that started it, with which it ends.
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self._file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._file], process_group=0,
            env=os.environ | SURROUNDINGS | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def write(self, layout: ArrayLayout, values: BlockArray, path: Path) -> Written:
        blocks = self._share(values)
        child = self.child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            pickle.dump(Request(layout, values.shape, blocks, path), child.stdin)
            child.stdin.flush()
            written, error = pickle.load(child.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as ended:  # the last: within its reply
            status = child.wait()
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise LakeError(ENDED.format(f"wrote {layout.name}", how)) from ended
        if error is not None:
            raise error
        assert isinstance(written, Written)
        return written

    def _share(self, values: BlockArray) -> list[SharedBlock]:
        """Blocks copied into the shared memory."""
        n_byte = sum(block.nbytes + ALIGNMENT for block in values.blocks())
        if self._memory is None or len(self._memory) < n_byte:
            os.ftruncate(self._file, max(n_byte, 1))
            self._memory = mmap.mmap(self._file, max(n_byte, 1))
        memory = np.frombuffer(self._memory, dtype=np.uint8)
        shared, end = list[SharedBlock](), 0
        for rows, corner, block in values.drain():
            place = memory[end : end + block.nbytes].view(block.dtype).reshape(block.shape)
            place[...] = block
            shared.append(SharedBlock(rows, corner, block.shape, end))
            end += -(-block.nbytes // ALIGNMENT) * ALIGNMENT
        return shared

    def end(self) -> None:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with suppress(BrokenPipeError):
            self.child.stdin.close()  # at which it ends
        self.child.wait()
        self.child.stdout.close()
        os.close(self._file)


def serve() -> None:
    """Write what is asked for on the standard input, until that ends: the program of a process."""
    files = int(sys.argv[1]), os.memfd_create("lake-encoded")
    requests, replies = SimpleQueue[Request](), sys.stdout.buffer
    sys.stdout = sys.stderr
    # Forked before there is any thread: a worker needs what is imported here and nothing else.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(ENCODERS, mp_context=fork, initializer=_begin_encoder, initargs=(os.getpid(),)) as pool:
        pool.submit(int).result()
        Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
        while True:
            request = requests.get()
            try:
                reply: tuple[Written | None, Exception | None] = _written(request, files, pool), None
            except BrokenProcessPool:
                reply = None, LakeError(ENDED.format(f"encoded {request.layout.name}", "killed"))
            except Exception as error:  # whoever asked raises it
                reply = None, error
            pickle.dump(reply, replies)
            replies.flush()


def _begin_encoder(parent: int) -> None:
    """End with the process that writes, however that ends, and leave the model its cores."""
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(0)
    os.nice(POLITE)
    blosc.use_threads = False  # the order of blocks would be theirs


def _listen(pipe: IO[bytes], requests: "SimpleQueue[Request]") -> None:
    """Take requests until there is nobody left to make any; then end at once, whatever is being written."""
    try:
        while True:
            requests.put(pickle.load(pipe))
    finally:  # at the end, or within a request that nobody will finish
        os._exit(0)


class _LargePieces(ShardFile):
    """A file of few large pieces; each is hashed while it is written."""

    def counted(self, piece: Piece) -> Iterator[Piece]:
        hashing = Thread(target=self.sha256.update, args=(piece,))
        hashing.start()
        self.size += len(piece)
        yield piece
        hashing.join()


def _written(request: Request, files: tuple[int, int], pool: ProcessPoolExecutor) -> Written:
    """Write a file; ``files`` are the shared memory with the blocks and that for encoded content."""
    with closing(_parts(request, files, pool)) as parts:
        encoded = shard_file(request.layout, lambda: parts, _LargePieces)
        pieces = iter(encoded.pieces)
        first = list(islice(pieces, 1))
        path = write_beside(request.path, chain(first, pieces)) if first else None
    return Written(path, encoded.size, encoded.digest(), encoded.checksums, encoded.rows)


def _parts(request: Request, files: tuple[int, int], pool: ProcessPoolExecutor) -> Generator[EncodedPart]:
    """Parts of a file in order; a part's content is valid until the next part is asked for."""
    size = part_bytes(request.layout)
    os.ftruncate(files[1], max(PLACES * size, os.fstat(files[1]).st_size))
    content, waiting = _memory(files[1]), deque[tuple[int, Future[EncodedPart]]]()

    def done(begin: int, coming: Future[EncodedPart]) -> EncodedPart:
        part = coming.result()
        return replace(part, pieces=[content[begin : begin + sum(part.sizes)]] if part.sizes else [])

    try:
        for number, part in enumerate(parts_of(request.layout)):
            if number >= PLACES:
                yield done(*waiting.popleft())
            begin = number % PLACES * size
            waiting.append((begin, pool.submit(_encode, request, files, part, begin, size)))
        yield from starmap(done, waiting)
    finally:  # after an error, encoders may not write into the memory of the next file
        wait([coming for _, coming in waiting])


def _encode(request: Request, files: tuple[int, int], part: tuple[int, ...], begin: int, size: int) -> EncodedPart:
    """Encode a part, in an encoder's process; the content goes into the shared memory, from ``begin`` on."""
    memory, values = _memory(files[0]), BlockArray(request.shape, request.layout.dtype, request.layout.fill)
    for block in request.blocks:
        values.add(block.rows, block.corner, _values_in(memory, block, values.dtype))
    encoded = encode_part(request.layout, values, 0, part)
    content, end = _memory(files[1])[begin : begin + size], 0
    for piece in encoded.pieces:
        content[end : end + len(piece)] = piece
        end += len(piece)
    return replace(encoded, pieces=[])


def _memory(file: int) -> memoryview:
    """All of a shared memory, which may have grown."""
    return memoryview(_mapped(file, os.fstat(file).st_size))


@lru_cache(maxsize=2)
def _mapped(file: int, n_byte: int) -> mmap.mmap:
    return mmap.mmap(file, n_byte)


def _values_in(memory: Any, block: SharedBlock, dtype: np.dtype[Any]) -> np.ndarray:
    count = int(np.prod(block.shape))
    return np.frombuffer(memory, dtype=dtype, count=count, offset=block.offset).reshape(block.shape)
