"""Bytes and lines of local files, plain or compressed, with errors that name the place.

Everything streams: memory holds one line, whatever the size of the file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional, Sequence

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


class Position:
    """How far a list of files is read, by their bytes on the disk: compressed files included."""

    def __init__(self, paths: Sequence[Path]):
        self._total = sum(path.stat().st_size for path in paths if path.is_file())
        self._done = 0                              # bytes of the files that are finished
        self._inside: Callable[[], int] = lambda: 0

    def enter(self, inside: Callable[[], int]) -> None:
        """A file is begun; ``inside()`` tells how many of its bytes are read."""
        self._inside = inside

    def leave(self) -> None:
        """The file is read to its end."""
        self._done, self._inside = self._done + self._inside(), lambda: 0

    def share(self) -> float:
        """0 to 1."""
        return min((self._done + self._inside()) / max(self._total, 1), 1.0)


def _open(path: Path, file: BinaryIO) -> BinaryIO:
    """The decompressed bytes of an open file."""
    if path.suffix == ".gz":
        return gzip.open(file, "rb")
    if path.suffix == ".xz":
        return lzma.open(file, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(file), 1 << 20)
    return file


def cannot_read(path: Path, error: OSError) -> DataError:
    """The DataError for a file that the system refuses to read."""
    if isinstance(error, PermissionError):
        return DataError(f"{path}: permission denied; allow reading with: chmod +r {path}")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; name the files in it, as in {path}/*.jsonl")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file; check the path")
    return DataError(f"{path}: cannot be read: {error.strerror or error}")


def lines(path: Path, piece_bytes: int = MAX_LINE_BYTES,
          position: Optional[Position] = None) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset in the decompressed text, line with its newline); ``position`` follows.

    A line longer than ``piece_bytes`` comes in pieces, cut between characters, that share its number.
    Raises DataError for unreadable files and for damaged or truncated compressed ones.
    """
    number, offset = 1, 0
    try:
        with open(path, "rb", buffering=1 << 20) as file, _open(path, file) as stream:
            if position is not None:
                position.enter(file.tell)
            while line := stream.readline(piece_bytes):
                if not line.endswith(b"\n"):
                    for _ in range(3):              # a character has at most three bytes after its first
                        next_byte = stream.peek(1)[:1]
                        if not next_byte or not 0x80 <= next_byte[0] < 0xC0:
                            break
                        line += stream.read(1)
                yield number, offset, line
                offset += len(line)
                number += line.endswith(b"\n")
            if position is not None:
                position.leave()
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
            f"{path}: line {number}, byte {offset + error.start}: invalid UTF-8 (0x{line[error.start]:02x}); convert the "
            f"file, as in: iconv -f latin1 -t utf-8, or set data.invalid_utf8 to replace or cp1252") from None


class TextDecoder:
    """Turns lines of bytes into text; ``invalid_utf8`` says what to do with bytes that are no UTF-8, and they are counted.

    refuse: DataError (``decode``). replace: every broken sequence becomes U+FFFD. cp1252: the whole line is read as
    Windows-1252, and the five bytes that Windows-1252 leaves undefined become U+FFFD.
    A line longer than the piece it is read in (``lines``) is judged piece by piece.
    """

    def __init__(self, invalid_utf8: str = "refuse"):
        self.position: Optional[Position] = None    # of the files that are read with this decoder
        self._policy = invalid_utf8
        self._read = {"refuse": None, "replace": self._replace, "cp1252": self._cp1252}[invalid_utf8]
        self._lines = self._marks = 0
        self._first: Optional[str] = None

    def decode(self, line: bytes, path: Path, number: int, offset: int) -> str:
        """Text of a line (or piece) that ``lines`` yielded with this number and offset."""
        if self._read is None:
            return decode(line, path, number, offset)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            self._lines += 1
            self._first = self._first or f"{path}: line {number}"
            return self._read(line)

    def _replace(self, line: bytes) -> str:
        text = line.decode("utf-8", errors="replace")
        self._marks += text.count("\ufffd") - line.count("\ufffd".encode())     # without those that were in the file
        return text

    def _cp1252(self, line: bytes) -> str:
        text = line.decode("cp1252", errors="replace")
        self._marks += text.count("\ufffd")
        return text

    def remarks(self) -> list[str]:
        """For people: one line when something was met until now that is no UTF-8, else none."""
        if not self._lines:
            return []
        count = "1 line was" if self._lines == 1 else f"{self._lines:,} lines were"
        return [f"{count} no UTF-8 (data.invalid_utf8={self._policy}), the first {self._first}"]

    def summary(self) -> dict[str, Any]:
        """What was met until now, for the provenance: lines that were no UTF-8, U+FFFD put in, the first place or None."""
        return {"lines": self._lines, "replacement_characters": self._marks, "first": self._first}
