"""Compress and decompress chunks as Zarr's codecs do, with one context for each thread.

numcodecs makes a new Zstandard context for every chunk. With one that is kept, compressing attention takes three fifths
of the time and decompressing it five sixths; the bytes are the same.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import numpy as np
import zstandard
from numcodecs import Blosc, blosc
from numcodecs.vlen import VLenUTF8
from zarr.codecs import BloscCodec, ZstdCodec


class _Contexts(threading.local):
    """Contexts of one thread."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS = _Contexts()


def compressor(codec: BloscCodec | ZstdCodec) -> Callable[[np.ndarray], bytes]:
    """Function that compresses a chunk; for use in one thread."""
    stated: Any = codec.to_dict()["configuration"]
    if isinstance(codec, ZstdCodec):
        zstd = zstandard.ZstdCompressor(level=stated["level"], write_checksum=stated["checksum"])
        return lambda chunk: zstd.compress(chunk.data)
    encoder = Blosc(**{**stated, "shuffle": getattr(Blosc, stated["shuffle"].upper())})
    return encoder.encode  # type: ignore[no-any-return]


def decompress(codec: BloscCodec | ZstdCodec, content: bytes | np.ndarray, values: np.ndarray) -> None:
    """Decompress a chunk into an array of bytes.

    Raises
    ------
    ValueError, RuntimeError
        If the content is not of this codec, or of another number of bytes.
    """
    if isinstance(codec, BloscCodec):
        blosc.decompress(content, values)
        return
    try:
        with _CONTEXTS.decompressor.stream_reader(np.frombuffer(content, np.uint8).data) as reader:
            size = reader.readinto(values) + len(reader.read(1))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if size != values.size:
        raise ValueError(f"{size} bytes or more were compressed; expected {values.size}")


def decompressed(content: bytes) -> bytes:
    """Decompress a small chunk that Zstandard compressed.

    Raises
    ------
    ValueError
        If the content is not of this codec.
    """
    try:
        return _CONTEXTS.decompressor.decompress(content)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def encode_rows(values: np.ndarray, length: int) -> Iterator[tuple[int, bytes]]:
    """Encode rows as Zarr does, ``length`` of them a chunk: bytes or texts, Zstandard, checksum.

    Yields the number and content of each chunk that is not all fill (zeros, or empty texts); the last is filled up.
    """
    is_text = isinstance(values.dtype, np.dtypes.StringDType)
    for number, begin in enumerate(range(0, len(values), length)):
        rows = values[begin : begin + length]
        chunk = np.zeros((length, *values.shape[1:]), dtype=values.dtype)
        chunk[: len(rows)] = rows
        plain = VLenUTF8().encode(chunk) if is_text else chunk.astype(chunk.dtype.newbyteorder("<")).tobytes()
        if (rows != "").any() if is_text else plain.strip(b"\0"):
            content = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(plain)
            yield number, content + int(google_crc32c.value(content)).to_bytes(4, "little")
