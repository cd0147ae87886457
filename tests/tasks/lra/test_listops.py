from statistics import median

import pytest

from manticore.errors import ManticoreError
from manticore.tasks.lra.listops import SYMBOLS, apply, examples, from_text, read_tsv, to_text, write_tsv

LABELS = [0.172, 0.087, 0.081, 0.083, 0.090, 0.088, 0.077, 0.070, 0.086, 0.168]
"""Shares of the labels in data of the official generator."""
PINNED = [(1867, 16015, 0), (1831, 15802, 2), (793, 6769, 2), (768, 6530, 5)]
"""Length, sum of ids and label of the first rows of seed 0."""
VALUES = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}


@pytest.fixture(scope="module")
def drawn():
    return list(examples("train", 10_000))


def value_of_text(text):
    """Evaluates the official notation: a pair is an operation with one more argument, or its value at the bracket."""
    stack = []
    for symbol in text.split():
        if symbol == ")":
            right, (operator, *arguments) = stack.pop(), stack.pop()
            assert stack.pop() == "("
            if right != "]":
                stack.append([operator, *arguments, right])
                continue
            stack.append(VALUES[operator](arguments))
        else:
            stack.append(int(symbol) if symbol.isdigit() else [symbol] if symbol.startswith("[") else symbol)
    (value,) = stack
    return value


def test_an_independent_evaluator_agrees_on_ten_thousand(drawn):
    wrong = [index for index, (ids, value) in enumerate(drawn) if value_of_text(to_text(ids)) != value]
    assert wrong == []


def test_lengths_depth_and_arguments_stay_in_their_limits(drawn):
    deepest = most = 0
    for ids, _ in drawn:
        assert 500 < len(ids) < 2000
        open_arguments = []
        for symbol in (SYMBOLS[index] for index in ids):
            if symbol == "]":
                count = open_arguments.pop()
                assert count >= 2
                most = max(most, count)
                continue
            if open_arguments:
                open_arguments[-1] += 1
            if symbol.startswith("["):
                open_arguments.append(0)
                deepest = max(deepest, len(open_arguments))
        assert open_arguments == []
    # the tenth level holds digits only
    assert (deepest, most) == (9, 10)


def test_statistics_are_those_of_the_official_generator(drawn):
    lengths = sorted(len(ids) for ids, _ in drawn)
    assert sum(lengths) / len(lengths) == pytest.approx(1034, abs=20)
    assert lengths[len(lengths) // 2] == pytest.approx(955, abs=30)
    shares = [sum(value == label for _, value in drawn) / len(drawn) for label in range(10)]
    assert shares == pytest.approx(LABELS, abs=0.015)
    # knowing only the root's operator is worth this much
    guess = {"[MIN": 0, "[MAX": 9, "[MED": 4}
    hits = sum(guess.get(SYMBOLS[ids[0]], 0) == value for ids, value in drawn)
    assert hits / len(drawn) == pytest.approx(0.366, abs=0.02)


def test_no_tree_comes_twice_in_any_split(drawn):
    trees = {tuple(ids) for ids, _ in drawn} | {tuple(ids) for ids, _ in examples("test", 300)}
    assert len(trees) == 10_300


def test_examples_do_not_depend_on_how_many_are_made_but_on_seed_and_split(drawn):
    assert list(examples("train", 3)) == drawn[:3]
    assert next(examples("train", 1, seed=1)) != drawn[0]
    assert next(examples("validation", 1)) != drawn[0]


def test_the_rows_of_a_seed_stay_what_they_are(drawn):
    """Bit-stable: a change here makes every earlier result on ListOps incomparable."""
    assert [(len(ids), sum(ids), value) for ids, value in drawn[:4]] == PINNED


def test_official_notation():
    text = "( ( ( ( [MAX 1 ) 7 ) 2 ) ] )"
    assert to_text(from_text(text)) == text
    assert [SYMBOLS[index] for index in from_text(text)] == ["[MAX", "1", "7", "2", "]"]
    nested = "( ( ( [SM ( ( ( [MED 1 ) 2 ) ] ) ) 9 ) ] )"
    assert to_text(from_text(nested)) == nested
    ids, _ = next(examples("train", 1))
    assert len(to_text(ids).split()) == 3 * len(ids) - 2


@pytest.mark.parametrize(
    ("operator", "arguments", "value"),
    [("[MIN", [3, 1], 1), ("[MAX", [3, 1], 3), ("[SM", [7, 6], 3), ("[MED", [2, 1], 1), ("[MED", [9, 0, 4], 4)],
)
def test_operations(operator, arguments, value):
    assert apply(operator, arguments) == value


def test_files_in_the_official_format_read_back_the_same(tmp_path, drawn):
    path = tmp_path / "basic_val.tsv"
    write_tsv(path, drawn[:20])
    content = path.read_bytes()
    assert content.startswith(b"Source\tTarget\r\n( ")
    assert content.count(b"\r\n") == content.count(b"\n") == 21
    assert list(read_tsv(path)) == drawn[:20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Source\n( 1 )\n", "no column Target"),
        ("", "no column Source"),
        ("Source\tTarget\n( ( ( [MIN 1 ) 2 ) ] )\t10\n", "line 2: label out of range"),
        ("Source\tTarget\n( ( ( [MIN 1 ) 2 ) ] )\n", "line 2: label out of range"),
        ("Source\tTarget\n( ( ( [FIRST 1 ) 2 ) ] )\t1\n", r"line 2: unknown symbol .got '\[FIRST'"),
        ("Source\tTarget\n\t1\n", "line 2: 0 symbols .expected 1 to"),
        ("Source\tTarget\n" + "1 " * 2001 + "\t1\n", "line 2: 2001 symbols .expected 1 to"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "basic_train.tsv"
    path.write_text(content)
    with pytest.raises(ManticoreError, match=message) as caught:
        list(read_tsv(path))
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)
