"""Text files of other encodings than UTF-8: open them as UTF-8, and say which encoding bytes look like.

A file is UTF-8, unless the user names another encoding, or the file begins with the byte-order mark of UTF-16 or
UTF-32, which leaves no doubt. No encoding is guessed: the encoding that bytes look like is only named in the error.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from spantune.core import ConfigError, DataError

MARK_NOTES = {
    "UTF-16": "UTF-16 read, as its byte-order mark says",
    "UTF-32": "UTF-32 read, as its byte-order mark says",
}
WINDOW = 1 << 16  # the number of bytes around a wrong byte by which the encoding is judged
_CHUNK = 1 << 20
_MARKS = (  # UTF-32 comes first, because its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (codecs.BOM_UTF8, "UTF-8"),
)
_HIGH = re.compile(rb"[\x80-\xff]+")
_TYPOGRAPHIC = frozenset("‘’“”„–—…•€£§°«»¡¿·©®\xa0")
_SELDOM_WESTERN = frozenset("ÐÝÞðþ")  # letters of Icelandic; in Turkish text these bytes stand for other letters
_FEW = 8  # with so few bytes or fewer, two encodings cannot be told apart
_HEAD = 1 << 12  # the number of first bytes by which a file that is no text is recognised
_PACKED = {
    b"\x1f\x8b": "compressed by gzip; unpack it first: gunzip --keep FILE",
    b"BZh91AY&SY": "compressed by bzip2; unpack it first: bunzip2 --keep FILE",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first: unxz --keep FILE",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first: unzstd FILE",
    b"PK\x03\x04": "a ZIP archive, as .xlsx and .docx files are too; unpack it, or export a table as CSV",
    b"%PDF-": "a PDF; export its text",
    b"SQLite format 3\0": "an SQLite database; export a table as CSV",
    b"version https://git-lfs.github.com/": "only a pointer to a file that Git LFS keeps; fetch it: git lfs pull",
}


def codec_of(name: str) -> codecs.CodecInfo:
    """Return the codec of the encoding `name`.

    Raises:
        ConfigError: Python knows no text encoding of that name.
    """
    try:
        codec = codecs.lookup(name)
        "a".encode(name)  # refuses codecs that are no encoding of text, such as base64
    except (LookupError, ValueError):
        raise ConfigError(
            f"unknown encoding {name!r}; expected the name of a text encoding, such as utf-8, windows-1252, "
            "iso-8859-1, gb18030, big5, shift_jis or utf-16"
        ) from None
    return codec


def open_as_utf8(path: Path, notes: Counter[str], encoding: str | None) -> BinaryIO:
    """Open `path` for reading bytes of UTF-8, whatever its encoding is; a wrong byte raises a DataError when read.

    Raises:
        ConfigError: the encoding is unknown.
        DataError: the file begins with the byte-order mark of another encoding than `encoding`, or it is no text: it is
            packed, or it is UTF-16 without a byte-order mark and `encoding` is None.
        OSError: the file cannot be opened.
    """
    codec = codec_of(encoding) if encoding is not None else None
    file = path.open("rb")
    try:
        head = file.read(_HEAD)
        file.seek(0)
        mark = mark_of(head)
        if packed := next((what for start, what in _PACKED.items() if head.startswith(start)), None):
            raise DataError(f"this is {packed}", path=path)
        if codec is None and not mark and _is_utf16(head):
            raise DataError(_LIKE_UTF16, path=path)
        if codec is not None and mark and not codec.name.upper().replace("_", "-").startswith(mark):
            raise DataError(
                f"begins with the byte-order mark of {mark}, but {encoding} was named as its encoding; leave the "
                "encoding out, or name the right one",
                path=path,
            )
    except BaseException:
        file.close()
        raise
    if codec is None and mark in MARK_NOTES:
        notes[MARK_NOTES[mark]] += 1
        codec = codecs.lookup(mark)
    if codec is None or codec.name in ("utf-8", "utf-8-sig"):
        return file
    return io.BufferedReader(_AsUtf8(file, codec, path), _CHUNK)


def mark_of(head: bytes) -> str:
    """Return the encoding of the byte-order mark with which `head` begins; "" if there is none."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "")


class _AsUtf8(io.RawIOBase):
    """The content of a file of another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, codec: codecs.CodecInfo, path: Path):
        self._file, self._path, self._name = file, path, codec.name
        self._decoder = codec.incrementaldecoder("strict")
        self._rest = b""
        self._offset, self._line = 0, 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = self._file.read(_CHUNK)
            self._rest = self._converted(chunk)
            if not chunk and not self._rest:
                return 0
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _converted(self, chunk: bytes) -> bytes:
        try:
            content = self._decoder.decode(chunk, final=not chunk).encode()
        except UnicodeError as error:
            place = self._offset
            if isinstance(error, UnicodeDecodeError):
                place += error.start - (len(error.object) - len(chunk))
            raise DataError(
                f"not {self._name}: the bytes at offset {max(place, 0)} of the file are no text in it; name another "
                "encoding, or mend the file",
                path=self._path,
                line=self._line if self._offset == 0 else None,
            ) from None
        self._offset += len(chunk)
        self._line += content.count(b"\n")
        return content


def window(path: Path, offset: int, content: bytes) -> bytes:
    """Return the bytes around `offset` of `path`; `content` if the file cannot be read a second time."""
    try:
        if not path.is_file():
            return content
        with path.open("rb") as file:
            file.seek(max(0, offset - WINDOW // 2))
            return file.read(WINDOW)
    except OSError:
        return content


def advice(content: bytes) -> str:
    """Say what to do about bytes that are not UTF-8, and which encoding they look like, if they look like one."""
    if mark_of(content) in MARK_NOTES or content.count(b"\0") * 4 > len(content) or _is_utf16(content):
        return "it looks like UTF-16 or UTF-32: write it to a file and name its encoding (--encoding utf-16-le, say)"
    runs = _HIGH.findall(_without_utf8(content))
    is_damaged = len(b"".join(_HIGH.findall(content))) > 4 * sum(map(len, runs))
    if is_damaged:
        return "the text around it is UTF-8, so the byte is damaged: mend it there"
    chinese, western = _is_chinese(runs), _is_western(runs)
    named = "name its encoding (--encoding NAME, data.encoding in a recipe)"
    if chinese and sum(map(len, runs)) <= _FEW:
        return f"{named}, which has to be known: gb18030 if the text is Chinese, windows-1252 if it is Western European"
    if chinese:
        return f"{named}; it looks like gb18030, if the text is Chinese"
    if western:
        return (
            f"{named}; single bytes among ASCII look like windows-1252 (Latin-1), if the language is a Western "
            "European one"
        )
    return f"{named}, which has to be known, or convert it to UTF-8"


_LIKE_UTF16 = (
    "this looks like UTF-16 without a byte-order mark; name its encoding (--encoding utf-16-le or utf-16-be, "
    "data.encoding in a recipe)"
)


def _is_utf16(content: bytes) -> bool:
    """Return whether the bytes look like text in UTF-16.

    Either they are ASCII with a NUL beside each character, or they have NULs, are not UTF-8, and are text in UTF-16.
    """
    even, odd = content[::2].count(0), content[1::2].count(0)
    is_ascii = len(content) >= _FEW and min(even, odd) == 0 and 5 * max(even, odd) >= 2 * len(content)
    if is_ascii or not even + odd:
        return is_ascii
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        name = "utf-16-le" if odd else "utf-16-be"
        text = content.decode(name, "replace")
        return all(character in "\r\n\t" or unicodedata.category(character)[0] != "C" for character in text[1:-1])
    return False


def _without_utf8(content: bytes) -> bytes:
    """Return `content` without the valid UTF-8 sequences of several bytes."""
    return re.sub(rb"[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|[\xc2-\xdf][\x80-\xbf]", b"", content)


def _is_chinese(runs: list[bytes]) -> bool:
    """Return whether most bytes are characters of GB 2312, distributed as in Chinese text.

    Other languages may decode as GB 2312 too. But Korean in EUC-KR decodes only into its first half and Cyrillic
    letters only into the second, and Japanese in EUC-JP has kana.
    """
    fitting = b""
    for run in runs:
        try:
            run.decode("gb2312")
        except UnicodeDecodeError:
            continue
        fitting += run
    first_bytes = fitting[::2]
    if 10 * len(fitting) < 9 * sum(map(len, runs)) or not fitting:
        return False
    count = len(first_bytes)
    early = sum(0xB0 <= byte < 0xC0 for byte in first_bytes)
    late = sum(byte >= 0xC9 for byte in first_bytes)
    rare = sum(byte >= 0xD8 for byte in first_bytes)
    kana = sum(byte in (0xA4, 0xA5) for byte in first_bytes)
    is_spread = 10 * early >= count and 5 * late >= count and 5 * rare <= 2 * count
    return len(fitting) <= _FEW or (is_spread and 10 * kana < count)


def _is_western(runs: list[bytes]) -> bool:
    """Return whether single bytes stand among ASCII, and are letters and signs of Western European languages."""
    if not runs or sum(map(len, runs)) > 1.5 * len(runs):
        return False
    try:
        text = b"".join(runs).decode("cp1252")
    except UnicodeDecodeError:
        return False
    return not set(text) & _SELDOM_WESTERN and all(
        unicodedata.category(character)[0] == "L" or character in _TYPOGRAPHIC for character in text
    )
