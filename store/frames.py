"""Parts of Blosc's frames: of a chunk of states the bytes of one example, without the rest."""

import os
from typing import Any

import numpy as np
from numcodecs import blosc

from store.range_check import CHECKSUM_BYTES

# A header of 16 bytes: versions, flags, size of an item; then bytes of the content, of a block, of the frame. One flag
# says that what follows is the content as it is. Else there follows where each block begins, then the blocks.
HEADER_BYTES = 16
FLAGS, MEMCPYED = 2, 0x2
MAX_BLOCKS = 32
"""Blocks of a chunk at most: one has 64 KiB or more."""


def is_plain(length: Any, size: int) -> Any:
    """Whether the length of a chunk on disk says that its content, of this size, is stored uncompressed."""
    return length == HEADER_BYTES + size + CHECKSUM_BYTES


def read_part(file: int, offset: int, length: int, size: int, begin: int, part: int) -> bytes:
    """Part of the content of a compressed chunk, unchecked; empty: read the whole chunk instead.

    The chunk lies at ``offset`` of the file descriptor, ``length`` long with its checksum; its content has ``size``
    bytes, of which the ``part`` that begin at ``begin`` are wanted.
    """
    content = os.pread(file, HEADER_BYTES + 4 * MAX_BLOCKS, offset)
    header = np.frombuffer(content[:HEADER_BYTES], dtype="<u4")
    if len(header) < 4 or header[1] != size or not size / MAX_BLOCKS <= header[2] < size:
        return b""  # of one block or of many, or no frame
    block_bytes, end = int(header[2]), begin + part
    n_block = -(-size // block_bytes)
    starts = np.frombuffer(content[HEADER_BYTES : HEADER_BYTES + 4 * n_block], dtype="<i4")
    ends = np.append(starts[1:], length - CHECKSUM_BYTES)
    if len(starts) < n_block or (starts < 0).any() or (ends <= starts).any():
        return b""  # damaged, or of several threads, in whose order blocks lie
    first, last = begin // block_bytes, (end - 1) // block_bytes
    if last == n_block - 1:
        first = max(0, min(first, last - 1))  # the last block may be shorter than a frame of its own has to be
    blocks = os.pread(file, int(ends[last] - starts[first]), offset + int(starts[first]))
    corner = first * block_bytes
    places = starts[first : last + 1] - starts[first] + HEADER_BYTES + 4 * (last + 1 - first)
    stated = [min((last + 1) * block_bytes, size) - corner, block_bytes, int(places[0]) + len(blocks)]
    frame = b"".join((header[:1].tobytes(), np.array(stated, dtype="<u4").tobytes(), places.tobytes(), blocks))
    try:
        content = blosc.decompress(frame)
    except RuntimeError:
        return b""
    bytes_read: bytes = content[begin - corner : end - corner]
    return bytes_read if len(bytes_read) == part else b""
