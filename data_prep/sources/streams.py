"""Bytes and lines of local files, plain or compressed, with errors that name the place.

Everything streams: memory holds one line, whatever the size of the file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator

import zstandard

from data_prep.errors import DataError

COMPRESSIONS = (".gz", ".xz", ".zst")
MAX_LINE_BYTES = 256_000_000


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a .zst file of one or more frames.

    Unlike ``zstandard``'s own stream reader it raises EOFError when the last frame is cut short.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self._inside = False        # bytes of the current frame were read and it is not complete
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(), False
            data = rest or self._file.read(1 << 17)
            if not data:
                if self._inside:
                    raise EOFError("the last frame is incomplete")
                return 0
            self._inside = True
            self._ready = self._frame.decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(open(path, "rb")), 1 << 20)
    return open(path, "rb", buffering=1 << 20)


def cannot_read(path: Path, error: OSError) -> DataError:
    """The DataError for a file that the system refuses to read."""
    if isinstance(error, PermissionError):
        return DataError(f"{path}: permission denied; allow reading with: chmod +r {path}")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; name the files in it, as in {path}/*.jsonl")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file; check data.files")
    return DataError(f"{path}: cannot be read: {error.strerror or error}")


def lines(path: Path, piece_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset in the decompressed text, line with its newline).

    A line longer than ``piece_bytes`` comes in pieces, cut between characters, that share its number.
    Raises DataError for unreadable files and for damaged or truncated compressed ones.
    """
    number, offset = 1, 0
    try:
        with _open(path) as stream:
            while line := stream.readline(piece_bytes):
                if not line.endswith(b"\n"):
                    while (next_byte := stream.peek(1)[:1]) and 0x80 <= next_byte[0] < 0xC0:
                        line += stream.read(1)
                yield number, offset, line
                offset += len(line)
                number += line.endswith(b"\n")
    except EOFError:
        raise DataError(f"{path}: truncated after line {number}: the compressed file ends too early; copy it again") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged {path.suffix} file after line {number} ({error}); copy it again") from None
    except OSError as error:
        raise cannot_read(path, error) from None


def decode(line: bytes, path: Path, number: int, offset: int) -> str:
    """UTF-8 text of a line that ``lines`` yielded; DataError with line and byte offset when it is none."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: line {number}, byte {offset + error.start}: invalid UTF-8 (0x{line[error.start]:02x}); "
            f"convert the file, as in: iconv -f latin1 -t utf-8") from None
