"""The header of a GGUF is checked before a reader believes it: damage and malice end in one line, in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from gguf_models import llama, tokenizer, write_gguf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from manticore.components.gguf_header import read_header
from manticore.components.loading import load_component
from manticore.errors import ManticoreError

EDGES = [0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
HUGE = (1 << 62).to_bytes(8, "little")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "whole.gguf"
    write_gguf(file, llama(), "Q4_1", tokens=tokenizer())
    return file.read_bytes()


def after(content: bytes, name: bytes, skip: int = 0) -> int:
    """Where what stands behind a name begins."""
    at = content.index(name) + len(name) + skip
    assert content.count(name) == 1
    return at


def put(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + new + content[at + len(new) :]


def behind(name: bytes, new: bytes, skip: int = 0) -> Callable[[bytes], bytes]:
    return lambda content: put(after(content, name, skip), new)(content)


ARRAY, TYPE, KIND = 4, 4, 4
"""Bytes before a list's item type, before a field's value, and of an item type."""
TENSOR = b"blk.1.attn_output.weight"

DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "an empty file. Fix: download it again"),
    "another format": (put(0, b"PK\x03\x04"), "it does not begin with GGUF. Fix: give a GGUF file"),
    "cut off in the magic": (lambda content: content[:3], "it does not begin with GGUF"),
    "cut off in the counts": (lambda content: content[:20], "its header ends beyond the file"),
    "cut off in the fields": (lambda content: content[:300], "its header ends beyond the file"),
    "cut off in the tensors": (lambda content: content[:-64], "ends at byte .*, the file at"),
    "version 1": (put(4, struct.pack("<I", 1)), r"version 1 \(expected 2 or 3\)"),
    "version 4": (put(4, struct.pack("<I", 4)), r"version 4 \(expected 2 or 3\)"),
    "big-endian": (put(4, struct.pack(">I", 3)), "its numbers are big-endian. Fix: convert it"),
    "too many tensors": (put(8, HUGE), r"4,611,686,018,427,387,904 tensors \(expected at most"),
    "more tensors than are there": (put(8, struct.pack("<Q", 900)), "not a usable GGUF file"),
    "no tensors": (put(8, bytes(8)), "no tensors. Fix: give the file with the weights"),
    "too many fields": (put(16, HUGE), r"4,611,686,018,427,387,904 fields \(expected at most"),
    "a long key": (put(24, HUGE), r"a text of 4,611,686,018,427,387,904 bytes \(expected at most 65,535\)"),
    "a long text": (behind(b"general.license", HUGE, TYPE), r"a text of .* bytes \(expected at most 1,048,576\)"),
    "a long list": (behind(b"tokenizer.ggml.tokens", HUGE, TYPE + KIND), r"lists of .* items \(expected at most"),
    "a list longer than the file": (
        behind(b"tokenizer.ggml.token_type", struct.pack("<Q", 1 << 20), TYPE + KIND),
        "its header ends beyond the file",
    ),
    "a list of lists": (behind(b"tokenizer.ggml.tokens", b"\x09", TYPE), "a list of items of unknown type 9"),
    "a field of no type": (behind(b"llama.block_count", b"\x63"), "a field of unknown type 99"),
    "no UTF-8": (lambda content: content.replace(b"llama.vocab_size", b"\xff\xfeama.vocab_size"), "is not UTF-8"),
    "no family": (
        lambda content: content.replace(b"general.architecture", b"general.architectura"),
        "names no general",
    ),
    "no dimensions": (behind(TENSOR, bytes(4)), "has 0 dimensions"),
    "many dimensions": (behind(TENSOR, b"\xff\xff\xff\x7f"), r"has 2147483647 dimensions \(expected 1 to 4\)"),
    "no weights": (behind(TENSOR, bytes(8), 4), "has the sizes"),
    "no whole blocks": (behind(TENSOR, struct.pack("<Q", 63), 4), r"has the sizes \[63, 64\] in blocks of 32"),
    "large": (behind(TENSOR, HUGE + HUGE, 4), "ends at byte .*, the file at"),
    "of no type": (behind(TENSOR, struct.pack("<I", 77), 4 + 16), "is of unknown type 77. Fix: install a newer gguf"),
    "outside": (behind(TENSOR, struct.pack("<Q", 1 << 40), 4 + 16 + 4), "ends at byte .*, the file at"),
    "beside the alignment": (
        behind(TENSOR, struct.pack("<Q", 7), 4 + 16 + 4),
        "begins at 7, which is no multiple of 32",
    ),
    "over another": (behind(TENSOR, bytes(8), 4 + 16 + 4), "lies over"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_damage_is_told_in_a_line_before_any_reader_has_the_file(tmp_path, whole, case):
    damage, message = DAMAGED[case]
    file = tmp_path / "bad.gguf"
    file.write_bytes(damage(whole))
    with pytest.raises(ManticoreError, match=message) as caught:
        load_component(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert "Fix: " in said
    assert "\n" not in said


def test_the_header_says_what_is_in_the_file(tmp_path, whole):
    file = tmp_path / "good.gguf"
    file.write_bytes(whole)
    header = read_header(file, "good")
    assert (header.architecture, header.quantization) == ("llama", "Q4_1")
    assert header.of_family("block_count") == 2
    assert header.fields["tokenizer.ggml.tokens"] == 306
    assert header.weights == sum(parameter.numel() for parameter in llama().parameters())
    assert header.tensors["blk.0.attn_k.weight"] == (32 * 64, "Q4_1")


def test_sizes_that_the_tensors_do_not_have_are_refused_before_memory_is_taken_for_them(tmp_path, whole):
    for name, value, message in [
        (b"llama.vocab_size", 1 << 31, "its header describes|the llama that transformers makes"),
        (b"llama.block_count", 1 << 20, "asks for num_hidden_layers 1048576"),
        (b"llama.feed_forward_length", 1 << 30, "the llama that transformers makes of it has"),
        (b"llama.attention.head_count", 0, "its header describes no model"),
    ]:
        file = tmp_path / "absurd.gguf"
        at = whole.index(name + struct.pack("<I", 4)) + len(name) + TYPE
        file.write_bytes(put(at, struct.pack("<I", value))(whole))
        tracemalloc.start()
        with pytest.raises(ManticoreError, match=message):
            load_component(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_written_into_a_header_it_is_refused_or_read_whole(tmp_path_factory, whole, data):
    end = whole.index(b"output_norm.weight")
    places = st.integers(0, end)
    edge = st.sampled_from(EDGES)
    edits = data.draw(
        st.lists(
            st.tuples(
                places, st.one_of(st.binary(min_size=1, max_size=9), edge.map(lambda n: n.to_bytes(8, "little")))
            ),
            min_size=1,
            max_size=3,
        )
    )
    content = whole
    for at, new in edits:
        content = put(at, new)(content)
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    file = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        header = read_header(file, "fuzzed")
    except ManticoreError as error:
        said = str(error)
    else:
        said = "fuzzed: read"
        # whoever believes it finds all of its tensors in the file
        assert sum(count for count, _ in header.tensors.values()) <= 32 * len(content)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert said.startswith("fuzzed: ")
    assert len(said.splitlines()) == 1


NUMBERS = [
    *("context_length", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv"),
    *("rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon", "vocab_size", "block_count"),
]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(NUMBERS), value=st.sampled_from(EDGES[:6]))
@example(key="attention.head_count_kv", value=255)
def test_a_header_that_describes_another_model_is_refused_in_a_line(tmp_path_factory, whole, key, value):
    file = tmp_path_factory.getbasetemp() / "other.gguf"
    name = f"llama.{key}".encode()
    at = next(at for kind in (4, 6) if (at := whole.find(name + struct.pack("<I", kind))) > 0) + len(name) + TYPE
    file.write_bytes(put(at, value.to_bytes(4, "little"))(whole))
    try:
        model = load_component(file)
    except ManticoreError as error:
        said = str(error)
    else:
        said = f"{file}: Fix: {model.num_parameters()}"
    assert said.startswith(str(file))
    assert "Fix: " in said
    assert len(said.splitlines()) == 1
