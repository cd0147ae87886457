"""The header of a GGUF file: looked at from end to end before any reader is given the file.

A GGUF is untrusted, and its readers believe it: a count, a length or an offset in it decides how much memory they take
and where they look. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, which have the
same). Needs the package ``gguf`` for the sizes of the quantised types, neither torch nor transformers.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError, closed
from manticore.printing import one_line

MOST_ENTRIES = 1 << 16
"""More tensors, or more fields, than any model has."""
MOST_ITEMS = 1 << 21
"""More items in all lists together than any vocabulary with its merges has; readers keep objects for each."""
LONGEST_STRING = 1 << 20
"""Longer than any chat template."""
LARGEST_HEADER = 1 << 27
"""Bytes."""
_LONGEST_KEY = (1 << 16) - 1

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 << 20
_MOST_DIMENSIONS = 4

_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOATS = ("F64", "F32", "F16", "BF16")

_DAMAGED = "Fix: download it again"


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself; all of it lies inside the file."""

    fields: Mapping[str, Any]
    """Key → number, text or flag; of a list, how many items it has."""
    tensors: Mapping[str, tuple[int, str]]
    """Name → how many weights, in which type (``Q4_1``)."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family."""
        return str(self.fields["general.architecture"])

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(count for count, _ in self.tensors.values())

    @property
    def quantization(self) -> str | None:
        """The quantised types, that with the most weights first (``Q4_1, Q8_0``); None for floating point alone."""
        counts: Counter[str] = Counter()
        for count, kind in self.tensors.values():
            counts[kind] += count
        return ", ".join(kind for kind, _ in counts.most_common() if kind not in _FLOATS) or None

    def of_family(self, key: str) -> Any:
        """A field that belongs to the family, such as ``block_count``; None where there is none."""
        return self.fields.get(f"{self.architecture}.{key}")


def read_header(path: Path, name: str) -> Header:
    """The header of a GGUF file, checked against the size of the file.

    Args:
        path: of the file.
        name: what the file is called in messages.

    Raises:
        ManticoreError: the package ``gguf`` is missing, or the file is none of a whole language model: cut off, of
            another kind, an unknown version, or with counts, lengths or offsets that no such file has.
    """
    require_gguf(name)
    try:
        with path.open("rb") as stream:
            if not stream.seek(0, 2):
                raise ManticoreError(f"{name}: an empty file. {_DAMAGED}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parser(content, name).header()
    except PermissionError as error:
        raise closed(path) from error
    except OSError as error:
        raise ManticoreError(f"{name}: cannot be read ({error.strerror}). Fix: give a regular file") from error


def require_gguf(name: str) -> None:
    """Refuse where the package ``gguf`` is not installed.

    Raises:
        ManticoreError: it is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ManticoreError(
            f"{name}: a GGUF file is read with the package gguf, which is not installed. "
            "Fix: pip install 'manticore-hybrids[gguf]', or pip install gguf"
        ) from None


class _Parser:
    """Walks through a header; every step is checked before it is taken."""

    def __init__(self, content: mmap.mmap, name: str) -> None:
        self.content, self.name = content, name
        self.size, self.at, self.items = len(content), 0, 0

    def fault(self, what: str, fix: str = _DAMAGED) -> ManticoreError:
        return ManticoreError(f"{self.name}: not a usable GGUF file: {one_line(what)}. {fix}")

    def header(self) -> Header:
        if self.content[:4] != b"GGUF":
            raise self.fault("it does not begin with GGUF", "Fix: give a GGUF file, or the folder of a checkpoint")
        self.at = 4
        version = self.number(_UINT32)
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise self.fault(
                "its numbers are big-endian" if swapped else f"version {version} (expected 2 or 3)",
                "Fix: convert it with gguf's gguf-convert-endian" if swapped else "Fix: convert the model again",
            )
        tensor_count, field_count = self.number(10), self.number(10)
        for what, count in (("tensors", tensor_count), ("fields", field_count)):
            if count > MOST_ENTRIES:
                raise self.fault(f"{count:,} {what} (expected at most {MOST_ENTRIES:,})")
        fields: dict[str, Any] = {}
        kinds: dict[str, int] = {}
        for _ in range(field_count):
            key = self.string(_LONGEST_KEY)
            if key in fields:
                raise self.fault(f"{key:.60} stands twice")
            kinds[key] = self.number(_UINT32)
            fields[key] = self.value(kinds[key])
        self.check_kind(fields)
        infos = [self.tensor() for _ in range(tensor_count)]
        if not infos:
            raise self.fault("no tensors", "Fix: give the file with the weights, not one of the vocabulary alone")
        return Header(fields, self.inside(infos, self.alignment(fields, kinds)))

    def check_kind(self, fields: Mapping[str, Any]) -> None:
        """Refuse what is no model, or a part of one."""
        if not isinstance(fields.get("general.architecture"), str):
            raise self.fault("it names no general.architecture", "Fix: give the GGUF file of a language model")
        kind = fields.get("general.type", "model")
        if kind != "model":
            raise self.fault(f"it is of type {kind!r:.40}", "Fix: give the file of the model itself")
        parts = fields.get("split.count", 0)
        if parts not in (0, 1):
            raise self.fault(f"one of {parts} parts", "Fix: join them with llama-gguf-split --merge")

    def alignment(self, fields: Mapping[str, Any], kinds: Mapping[str, int]) -> int:
        found = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        is_uint = kinds.get("general.alignment", _UINT32) == _UINT32
        if not is_uint or not 0 < found <= _LARGEST_ALIGNMENT or found & (found - 1):
            raise self.fault(f"general.alignment is {found!r:.40} (expected a power of two)")
        return int(found)

    def take(self, length: int) -> int:
        """Where the next ``length`` bytes begin."""
        begin, end = self.at, self.at + length
        if end > self.size:
            raise self.fault(f"its header ends beyond the file ({end:,} of {self.size:,} bytes)")
        if end > LARGEST_HEADER:
            raise self.fault(f"its header is longer than {LARGEST_HEADER:,} bytes")
        self.at = end
        return begin

    def number(self, kind: int) -> Any:
        form = f"<{_SCALARS[kind]}"
        return struct.unpack_from(form, self.content, self.take(struct.calcsize(form)))[0]

    def string(self, longest: int = LONGEST_STRING) -> str:
        begin = self.skip_string(longest)
        try:
            return self.content[begin : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fault(f"text at byte {begin:,} is not UTF-8") from None

    def skip_string(self, longest: int = LONGEST_STRING) -> int:
        length = self.number(10)
        if length > longest:
            raise self.fault(f"a text of {length:,} bytes (expected at most {longest:,})")
        return self.take(length)

    def value(self, kind: int) -> Any:
        """A field's value; of a list, how many items it has."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(kind)
        if kind != _ARRAY:
            raise self.fault(f"a field of unknown type {kind}")
        of, count = self.number(_UINT32), self.number(10)
        self.items += count
        if self.items > MOST_ITEMS:
            raise self.fault(f"lists of {self.items:,} items (expected at most {MOST_ITEMS:,})")
        if of == _STRING:
            for _ in range(count):
                self.skip_string()
        elif of in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[of]}"))
        else:
            raise self.fault(f"a list of items of unknown type {of}")
        return count

    def tensor(self) -> tuple[str, int, str, int, int]:
        """Name, number of weights, type, where it begins in the data, bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.string(_LONGEST_KEY)
        dimensions = self.number(_UINT32)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.fault(f"{name:.60} has {dimensions} dimensions (expected 1 to {_MOST_DIMENSIONS})")
        sizes = [self.number(10) for _ in range(dimensions)]
        raw, offset = self.number(_UINT32), self.number(10)
        try:
            kind = GGMLQuantizationType(raw)
        except ValueError:
            raise self.fault(f"{name:.60} is of unknown type {raw}", "Fix: install a newer gguf") from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        count = math.prod(sizes)
        if not count or sizes[0] % per_block:
            raise self.fault(f"{name:.60} has the sizes {sizes} in blocks of {per_block}")
        return name, count, kind.name, offset, count // per_block * block_bytes

    def inside(self, infos: list[tuple[str, int, str, int, int]], alignment: int) -> dict[str, tuple[int, str]]:
        """Name → weights and type, where all tensors lie in the file and none over another."""
        data = -(-self.at // alignment) * alignment
        end, before = 0, ""
        for name, _, _, offset, length in sorted(infos, key=lambda info: info[3]):
            if offset % alignment:
                raise self.fault(f"{name:.60} begins at {offset:,}, which is no multiple of {alignment}")
            if offset < end:
                raise self.fault(f"{name:.60} lies over {before:.60}")
            end, before = offset + length, name
            if data + end > self.size:
                raise self.fault(f"{name:.60} ends at byte {data + end:,}, the file at {self.size:,}")
        found = {name: (count, kind) for name, count, kind, _, _ in infos}
        if len(found) < len(infos):
            raise self.fault("a tensor stands twice")
        return found
