"""Text that stands in tables: one document per row, of one clear column, and a sentence for everything else."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile

import pytest
from datasets import Dataset, DatasetDict

import manticore
from manticore.errors import ManticoreError
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import load_task
from manticore.training.calibration import calibration_packs
from manticore.training.pretrain import pretrain
from tests.conftest import gpt_neo

DOCUMENTS = ['Été number 0.\nSecond "line".', "with, commas\tand tabs", "NA", "日本 " * 40_000]
ROWS = [{"text": document, "meta": {"id": index}} for index, document in enumerate(DOCUMENTS)]
FLAT = [{"id": index, "body": document} for index, document in enumerate(DOCUMENTS)]


def json_lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def separated(rows, separator=","):
    quoted = [[str(value).replace('"', '""') for value in row.values()] for row in rows]
    lines = [list(rows[0]), *([f'"{value}"' for value in row] for row in quoted)]
    return "\n".join(separator.join(line) for line in lines) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines(ROWS)),
        ("a.ndjson", json_lines(ROWS) + "\n\n"),
        ("a.json", json.dumps(ROWS)),
        ("a.JSON", json.dumps(ROWS, indent=1, ensure_ascii=False)),
        ("lines.json", json_lines(ROWS)),
        ("a.csv", separated(FLAT)),
        ("a.tsv", separated(FLAT, "\t")),
        ("bom.csv", "\ufeff" + separated(FLAT).replace("\n1", "\n1")),
    ],
)
def test_a_table_is_one_document_per_row_as_a_data_set_of_the_same_rows(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_corpus(path) == DOCUMENTS == read_corpus(Dataset.from_list(ROWS))


def test_parquet_and_saved_data_sets(tmp_path):
    rows = Dataset.from_list(FLAT)
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_corpus(tmp_path / "a.parquet") == DOCUMENTS
    rows.save_to_disk(tmp_path / "saved")
    assert read_corpus(tmp_path / "saved") == DOCUMENTS
    DatasetDict({"training": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ManticoreError, match=r"splits training, test \(expected one\)\. Fix: give one, .*splits/train"):
        read_corpus(tmp_path / "splits")
    assert read_corpus(tmp_path / "splits" / "training") == DOCUMENTS


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_compressed_files_are_what_is_inside(packed, name, tmp_path):
    content = {"a.jsonl": json_lines(ROWS), "a.csv": separated(FLAT), "a.txt": DOCUMENTS[0]}[name]
    ending = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[packed]
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(packed(content.encode()))
    assert read_corpus(path) == (DOCUMENTS if name != "a.txt" else DOCUMENTS[:1])
    path.write_bytes(packed(content.encode())[:-9])
    with pytest.raises(ManticoreError, match="cannot be unpacked") as caught:
        read_corpus(path)
    assert "\n" not in str(caught.value)


def test_an_archive_of_one_file_is_read_and_one_of_two_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr("inside.jsonl", json_lines(ROWS))
    assert read_corpus(tmp_path / "a.jsonl.zip") == DOCUMENTS
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "a") as archive:
        archive.writestr("more.jsonl", json_lines(ROWS))
    with pytest.raises(ManticoreError, match="2 files inside"):
        read_corpus(tmp_path / "a.jsonl.zip")


def test_the_column_is_the_named_one_or_text_or_the_only_one_of_strings(tmp_path):
    rows = [{"title": "a", "text": "one"}, {"title": "b", "text": "two"}]
    path = tmp_path / "a.jsonl"
    path.write_text(json_lines(rows))
    for source in (path, Dataset.from_list(rows)):
        assert read_corpus(source) == ["one", "two"]
        assert read_corpus(source, text_column="title") == ["a", "b"]
    (tmp_path / "a.csv").write_text("id,score,body\n1,0.5,one\n2,,two\n")
    assert read_corpus(tmp_path / "a.csv") == ["one", "two"]
    with pytest.raises(ManticoreError, match="column 'score' holds numbers"):
        read_corpus(tmp_path / "a.csv", text_column="score")


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.jsonl", json_lines([{"a": "x", "b": "y", "n": 1}]), None,
         r"2 columns of text and none called text \(its columns: a \(text\), b \(text\), n \(numbers\)\)\. Fix: name"),
        ("a.jsonl", json_lines([{"messages": [{"content": "x"}]}]), None, r"no column of text .*messages \(lists\)"),
        ("a.jsonl", json_lines([{"text": {"body": "x"}, "n": 1}]), None, "column 'text' holds nested fields"),
        ("a.jsonl", json_lines(ROWS), "meta", r"column 'meta' holds nested fields .*text \(text\), meta"),
        ("a.jsonl", json_lines(ROWS), "meta.id", r"no column 'meta\.id' \(its columns: text \(text\), meta"),
        ("a.jsonl", json_lines(ROWS), "txt", "Did you mean 'text'"),
        ("a.jsonl", json_lines([{"text": "x"}, {"text": None}, {"n": 1}]), None,
         "2 of 3 rows have no 'text' .first: line 2"),
        ("a.jsonl", json_lines([{"text": "x"}, {"text": 7}]), None, "line 2: 'text' is numbers"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y"\n', None, "line 3 is no JSON"),
        ("a.jsonl", '"x"\n"y"', None, "line 1 is text .expected an object"),
        ("a.jsonl", '{"text": "\\ud800"}', None, "line 1 holds half characters"),
        ("a.jsonl", "\n \n", None, "empty"),
        ("a.json", "", None, "empty"),
        ("a.json", "[]", None, "no column of text"),
        ("a.json", '[{"text": "x"},', None, "no JSON"),
        ("a.json", '{"data": [{"text": "x"}]}', None, r"no column of text .*data \(lists\)"),
        ("a.json", '["x", "y"]', None, "row 1 is text"),
        ("a.csv", "a,b\n1,x\n2\n", None, r"line 3 has 1 fields, the first line names 2 columns \(a, b\)"),
        ("a.csv", 'a,b\n1,"x\n2,y\n', None, "line 2 cannot be read"),
        ("a.csv", "a;b\n1;x\n", None, "separated by ';'"),
        ("a.csv", "a,a\n1,x\n", None, "two columns are called 'a'"),
        ("a.csv", "a,b\n", None, "no column of text"),
        ("a.csv", b"text\n\xff\xfe\n", None, "line 2 is not UTF-8"),
        ("a.csv", "id,n\n1,2\n", None, r"no column of text .*id \(numbers\), n \(numbers\)"),
        ("a.parquet", b"PAR1 no", None, "cannot be read as Parquet"),
        ("a.jsonl.zst", b"x", None, "zstd cannot be read here .*not supported.* Fix: pip install zstandard"),
        ("a.txt", "x", "text", "a.txt has no columns"),
    ],
)  # fmt: skip
def test_tables_that_are_not_clear_end_in_one_line(name, content, column, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManticoreError, match=message) as caught:
        read_corpus(path, text_column=column)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_splits_streams_and_mappings_are_refused_everywhere(tokenizer):
    rows = Dataset.from_list(ROWS)
    splits = DatasetDict({"train": rows, "test": rows})
    for read in (read_corpus, lambda text: load_task("text", tokenizer=tokenizer, source=text)):
        with pytest.raises(ManticoreError, match=r"DatasetDict of train, test .*text\['train'\]"):
            read(splits)
    with pytest.raises(ManticoreError, match=r"dict of a .*text\['a'\]"):
        read_corpus({"a": ["x"]})
    with pytest.raises(ManticoreError, match="a stream of rows"):
        read_corpus(rows.to_iterable_dataset())
    with pytest.raises(ManticoreError, match="text is None"):
        read_corpus(None)
    with pytest.raises(ManticoreError, match="3 of 3 rows have no 'text'"):
        read_corpus(Dataset.from_dict({"text": [None, None, None]}))


def test_folders_hold_one_kind_and_patterns_pick_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text(json_lines(ROWS[:2]))
    (tmp_path / "b.csv").write_text(separated(FLAT[2:]))
    assert read_corpus(tmp_path) == DOCUMENTS[2:] + DOCUMENTS[:2]
    (tmp_path / "README.md").write_text("About these data.")
    with pytest.raises(
        ManticoreError, match=r"2 tables .such as b.csv. beside 1 other files .such as README.md"
    ) as caught:
        read_corpus(tmp_path)
    assert "*.csv" in str(caught.value)
    assert read_corpus(f"{tmp_path}/**/*.jsonl") == DOCUMENTS[:2]
    assert read_corpus(f"{tmp_path}/*.md") == ["About these data."]
    with pytest.raises(ManticoreError, match="no such file"):
        read_corpus(f"{tmp_path}/*.parquet")


def test_a_thing_that_is_no_regular_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    for source in (tmp_path / "pipe.jsonl", "/dev/zero"):
        with pytest.raises(ManticoreError, match="neither a file nor a folder"):
            read_corpus(source)


def test_every_place_a_text_comes_from_takes_the_column(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json_lines([{"title": f"{i}", "body": f"def f(x):\n    return x + {i}\n" * 4} for i in range(60)]))
    task = load_task("text", tokenizer=tokenizer, source=str(path), text_column="body", length=16)
    assert "def f" in tokenizer.decode(task.data["train"][0]["input_ids"])
    sizes = {"tokens": 1024, "holdout": 0.1, "length": 32, "seed": 0, "tokenizer": tokenizer}
    packs, _ = calibration_packs(path, text_column="body", **sizes)
    assert "def f" in tokenizer.decode(packs.input_ids[0])
    hybrid = manticore.combine([gpt_neo(len(tokenizer))] * 2, num_blocks=2, tokenizer=tokenizer, check=False)
    for read in (
        lambda column: manticore.align(hybrid, path, text_column=column),
        lambda column: pretrain("gpt_neo", layers=1, width=32, text=path, text_column=column),
    ):
        with pytest.raises(ManticoreError, match="2 columns of text"):
            read(None)
        with pytest.raises(ManticoreError, match="no column 'nope'"):
            read("nope")
