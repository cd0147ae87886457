import os
import sysconfig
from pathlib import Path

import pytest
from datasets import Dataset

from manticore.errors import ManticoreError
from manticore.tasks.builtin_texts import READERS, _prose
from manticore.tasks.corpus import corpus_digest, read_corpus
from manticore.tasks.text_sources import BUILTIN


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / "b.txt").write_bytes("zwei\r\nGröße".encode())
    (root / "a.md").write_text("one")
    (root / "deep" / "c.txt").write_text("three")
    (root / "empty.txt").write_text("")
    (root / ".hidden").write_text("no")
    return root


def test_a_file_is_one_document_kept_byte_for_byte(folder):
    assert read_corpus(folder / "b.txt") == ["zwei\r\nGröße"]


def test_a_folder_is_read_in_order_without_hidden_and_empty_files(folder):
    assert read_corpus(str(folder)) == ["one", "zwei\r\nGröße", "three"]


def test_files_that_are_no_text_are_left_out_of_a_folder_and_said_so(folder, caplog):
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1"))
    assert len(read_corpus(folder)) == 3
    assert "2 of 6 files are not UTF-8 text" in caplog.text


def test_the_standard_library_is_the_running_one_without_its_tests():
    documents = read_corpus()
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert (stdlib / "argparse.py").read_text(encoding="utf-8") in documents
    assert (stdlib / "asyncio" / "tasks.py").read_text(encoding="utf-8") in documents
    assert sum(map(len, documents)) > 5_000_000
    assert Path(pytest.__file__).read_text(encoding="utf-8") not in documents


def test_docstrings_are_english_of_other_packages_in_a_fixed_order():
    prose = read_corpus("docstrings", max_bytes=400_000)
    assert prose == read_corpus("docstrings", max_bytes=400_000)
    text = "".join(prose)
    paragraphs = [paragraph for document in prose for paragraph in document.strip().split("\n\n")]
    assert len(set(paragraphs[:-1])) == len(paragraphs[:-1])
    letters = sum(letter.isalpha() or letter.isspace() for letter in text)
    assert letters > 0.93 * len(text)
    assert not any(sign in text for sign in (">>>", "import numpy", "   "))
    stdlib = "".join(read_corpus("stdlib"))
    assert not any(paragraph in stdlib for paragraph in paragraphs[:100])
    assert set(READERS) == set(BUILTIN)


def test_only_what_reads_as_a_sentence_is_prose():
    source = '''
        """Return the mean of all the values that are not missing.

        >>> mean([1, 2])
        short one.
        mean : float  It is the mean of all the values, as defined above.
        Use x_y, a.b, c(d) and e=f with 7 or 8 of them.

        The second paragraph, in two lines,
        is one that counts as well.
        """
        text = """Not a docstring, though it is a sentence of words."""
    '''
    assert list(_prose(source)) == [
        "Return the mean of all the values that are not missing.",
        "The second paragraph, in two lines,\nis one that counts as well.",
    ]


def test_max_bytes_counts_utf8_and_cuts_no_character():
    assert read_corpus(["abc", "äöü", "x"], max_bytes=6) == ["abc", "ä"]
    assert read_corpus(["abc", "äöü", "x"], max_bytes=100) == ["abc", "äöü", "x"]
    assert sum(len(document.encode()) for document in read_corpus(max_bytes=10_000)) == 10_000


def test_data_sets(tmp_path):
    rows = Dataset.from_dict({"text": ["one", "", "two"], "label": [1, 2, 3], "title": ["a", "b", "c"]})
    assert read_corpus(rows) == ["one", "two"]
    assert read_corpus(Dataset.from_dict({"content": ["one"], "id": [7]})) == ["one"]
    (tmp_path / "data").mkdir()
    rows.to_json(tmp_path / "data" / "rows.jsonl")
    assert read_corpus(f"hf:{tmp_path / 'data'}") == ["one", "two"]


def test_the_digest_tells_corpora_apart():
    digests = {corpus_digest(documents) for documents in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(digests) == 4
    assert corpus_digest(["ab", "c"]) in digests


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing/notes.txt", "no such file"),
        ([], "empty"),
        (["", " \n"], "empty"),
        (list("some text"), r"pass \[text\]"),
        (["a", 7], "item 1 is int"),
        (["\ud800"], "half characters"),
        (Dataset.from_dict({"a": ["x"], "b": ["y"]}), "none called text"),
        (Dataset.from_dict({"a": [1]}), "none called text"),
    ],
)
def test_bad_sources_end_in_one_line(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing").mkdir()
    with pytest.raises(ManticoreError, match=message) as caught:
        read_corpus(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"  \n\t\n", "empty"), (b"PK\x03\x04\0\0", "binary"), (b"\xff\xfeabc", "not UTF-8")],
)
def test_bad_files_end_in_one_line(content, message, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(ManticoreError, match=message) as caught:
        read_corpus(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_folders_end_in_one_line(tmp_path):
    with pytest.raises(ManticoreError, match="empty"):
        read_corpus(tmp_path)
    (tmp_path / "picture").write_bytes(b"\0")
    with pytest.raises(ManticoreError, match="none of its 1 files"):
        read_corpus(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(ManticoreError, match="Permission denied"):
        read_corpus(path)


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True])
def test_bad_max_bytes(max_bytes):
    with pytest.raises(ManticoreError, match="max_bytes"):
        read_corpus(["text"], max_bytes=max_bytes)


def test_a_data_set_that_cannot_be_loaded_ends_in_one_line(tmp_path):
    with pytest.raises(ManticoreError, match="no such file, folder or readable data set") as caught:
        read_corpus(f"hf:{tmp_path / 'nothing'}")
    assert "\n" not in str(caught.value)
