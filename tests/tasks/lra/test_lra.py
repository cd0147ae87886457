import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from manticore.errors import ManticoreError
from manticore.tasks.lra import images, listops, pathfinder
from manticore.tasks.lra.examples import ARENAS, load
from manticore.tasks.lra.images import grey, hub_image_rows, write_pathfinder
from manticore.tasks.lra.text import reviews_of_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def refused(message, *arguments, **options):
    with pytest.raises(ManticoreError, match=message) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)


def write_reviews(root):
    for split, count in (("train", 20), ("test", 6)):
        for sentiment in ("neg", "pos"):
            folder = root / split / sentiment
            folder.mkdir(parents=True)
            for number in range(count // 2):
                (folder / f"{number}_1.txt").write_text(f"{split} {sentiment} {number} ü")
    return root


def write_cifar(root, per_batch=4):
    root.mkdir()
    generator = np.random.default_rng(0)
    for batch, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        records = generator.integers(0, 256, (per_batch, 3073), dtype=np.uint8)
        records[:, 0] = batch
        (root / name).write_bytes(records.tobytes())
    return root


def write_numbered(root, *, binary=False, side=32, count=20):
    """The image that number k has as its only grey value, label k % 2."""
    for batch in (2, 10):
        (root / f"imgs/{batch}").mkdir(parents=True)
        (root / "metadata").mkdir(exist_ok=True)
        lines = []
        for index in range(count // 2):
            number = index + (batch == 10) * count // 2
            Image.new("L", (side, side), number).save(root / f"imgs/{batch}/sample_{index}.png")
            fields = f"imgs/{batch} sample_{index}.png {index} {number % 2} 1.0 14 4 2 0.5 1 1"
            lines.append(fields.split())
        path = root / f"metadata/{batch}.npy"
        if binary:
            np.save(path, np.array(lines))
        else:
            path.write_text("".join(" ".join(line) + "\n" for line in lines))
    return root


def write_pairs(root, line="1.0\tA\tB\tone text\tother"):
    root.mkdir(parents=True)
    for part in ("train", "eval", "test"):
        (root / f"new_aan_pairs.{part}.tsv").write_text(f"{line}\n0.0\tC\tD\t{part} {'x' * 5000}\ty\n")
    return root


def test_listops_is_generated_cached_and_the_same_for_any_number():
    few = load("listops", num_train=3, num_validation=2, num_test=2)
    assert list(few) == ["train", "validation", "test"]
    assert few["train"].column_names == ["input_ids", "label"]
    expected = list(listops.examples("train", 3))
    assert [(row["input_ids"], row["label"]) for row in few["train"]] == expected
    more = load("listops", num_train=4, num_validation=2, num_test=2)
    assert more["train"][:3] == few["train"][:]
    assert more["train"].cache_files != few["train"].cache_files
    assert more["test"].cache_files == few["test"].cache_files
    assert load("listops", num_train=3, num_validation=2, num_test=2, seed=1)["train"][:] != few["train"][:]
    rows = few.with_format("torch")["train"][0]["input_ids"]
    assert rows.dtype == torch.int64
    assert rows.min() >= 1
    assert rows.max() < ARENAS["listops"].vocab_size == 17


def test_a_damaged_cache_is_made_again(caplog):
    sizes = {"num_train": 3, "num_validation": 1, "num_test": 1}
    first = load("listops", **sizes)
    rows, (file,) = first["train"][:], first["train"].cache_files
    del first
    with open(file["filename"], "r+b") as stored:
        stored.truncate(100)
    assert load("listops", **sizes)["train"][:] == rows
    assert "is made again" in caplog.text


def test_a_file_that_cannot_be_read_is_not_taken_for_a_full_cache(tmp_path):
    folder = tmp_path / "listops-1000"
    (folder / "basic_val.tsv").mkdir(parents=True)
    for part in ("train", "test"):
        listops.write_tsv(folder / f"basic_{part}.tsv", listops.examples(part, 2, seed=5))
    refused(r"^lra: .*basic_val\.tsv cannot be read \(Is a directory\)", "listops", tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "file"))
    refused("cannot be stored in .* MANTICORE_CACHE", "listops", num_train=1, num_validation=1, num_test=1)


@pytest.mark.parametrize("nested", ["listops-1000", "lra_release/listops-1000", "."])
def test_listops_files_of_the_release(tmp_path, nested):
    folder = tmp_path / "release" / nested
    folder.mkdir(parents=True)
    for part, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        listops.write_tsv(folder / f"basic_{part}.tsv", listops.examples(split, 2, seed=5))
    data = load("listops", tmp_path / "release")
    for split in data:
        expected = list(listops.examples(split, 2, seed=5))
        assert [(row["input_ids"], row["label"]) for row in data[split]] == expected
    assert len(load("listops", tmp_path / "release", num_train=1)["train"]) == 1
    refused("train has too few examples .got 2, expected 3.*num_train=2", "listops", tmp_path / "release", num_train=3)
    # a file that changes is read again
    listops.write_tsv(folder / "basic_test.tsv", listops.examples("test", 3, seed=6))
    assert len(load("listops", tmp_path / "release")["test"]) == 3


def test_reviews_are_bytes_and_validation_is_held_out_of_train(tmp_path):
    data = load("text", write_reviews(tmp_path / "aclImdb"))
    assert {split: len(data[split]) for split in data} == {"train": 18, "validation": 2, "test": 6}
    texts = {
        split: ["".join(map(chr, (i - 1 for i in row["input_ids"]))).encode("latin-1").decode() for row in data[split]]
        for split in data
    }
    assert len(set(texts["train"] + texts["validation"])) == 20
    assert all(text.startswith("train ") for text in texts["train"] + texts["validation"])
    assert all(text.startswith("test ") for text in texts["test"])
    for split in data:
        assert [int(" pos " in text) for text in texts[split]] == data[split]["label"]
    # files lie sorted by label; the rows do not
    assert data["train"]["label"] not in (sorted(data["train"]["label"]), sorted(data["train"]["label"])[::-1])


def test_equal_reviews_do_not_fall_on_both_sides(tmp_path):
    root = write_reviews(tmp_path / "aclImdb")
    for path in root.glob("train/*/*.txt"):
        path.write_text("the same" if int(path.stem[0]) > 1 else path.parent.name + path.stem)
    data = load("text", root, num_test=1)
    validation = {tuple(ids) for ids in data["validation"]["input_ids"]}
    assert validation.isdisjoint(map(tuple, data["train"]["input_ids"]))


def test_retrieval_has_two_documents_cut_to_length(tmp_path):
    write_pairs(tmp_path / "release" / "tsv_data")
    data = load("retrieval", tmp_path / "release")
    first, second = data["validation"]
    assert first == {
        "input_ids": [ord(letter) + 1 for letter in "one text"],
        "input_ids_2": [ord(letter) + 1 for letter in "other"],
        "label": 1,
    }
    assert len(second["input_ids"]) == ARENAS["retrieval"].length
    assert second["input_ids"][:4] == [ord(letter) + 1 for letter in "eval"]
    assert second["label"] == 0


def test_images_are_grey_and_validation_is_the_last_tenth(tmp_path):
    root = write_cifar(tmp_path / "cifar-10-batches-bin")
    data = load("image", tmp_path)
    assert {split: data[split]["label"] for split in data} == {
        "train": [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2,
        "validation": [4] * 2,
        "test": [5] * 4,
    }
    record = np.frombuffer((root / "test_batch.bin").read_bytes(), np.uint8)[1:3073]
    red, green, blue = (int(record[1024 * channel + 33]) for channel in range(3))
    assert data["test"][0]["input_ids"][33] == int((0.2989 * red + 0.5870 * green + 0.1140 * blue) * 255.5 / 255)
    assert len(data["test"][0]["input_ids"]) == ARENAS["image"].length
    # the weights sum to 0.9999
    assert grey(np.full((1, 3), 255)).tolist() == [255]


def test_grey_is_truncated_as_the_official_conversion_does():
    """That goes through float32: to 0 … 1, the weighted sum, times 255.5, cut off. Every third level of each colour."""
    levels = np.arange(0, 256, 3)
    pixels = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    parts = [
        pixels[:, channel].astype(np.float32) * np.float32(1 / 255) * np.float32(weight)
        for channel, weight in enumerate((0.2989, 0.5870, 0.1140))
    ]
    official = ((parts[0] + parts[1] + parts[2]) * np.float32(255.5)).astype(np.uint8)
    found = grey(pixels)
    # float32 differs where the exact value is a whole number or next to one
    different = np.flatnonzero(found != official)
    assert len(different) <= 2e-5 * len(pixels)
    rounded = np.rint(pixels @ np.array([0.2989, 0.5870, 0.1140]))
    assert 0.2 < float((found != rounded).mean()) < 0.3
    # by hand: 128.4815 * 255.5 / 255 = 128.73, and 0.9999 * 99 * 255.5 / 255 = 99.18
    assert grey(np.array([[255, 70, 98], [99, 99, 99]])).tolist() == [128, 99]


def test_images_cached_by_another_rule_are_made_again(tmp_path, monkeypatch):
    write_cifar(tmp_path / "cifar-10-batches-bin")
    before = load("image", tmp_path)["test"][0]["input_ids"]
    with monkeypatch.context() as other:
        other.setattr(images, "GREY_RULE", "rounded")
        other.setattr(images, "grey", lambda pixels: np.zeros(pixels.shape[:-1], np.uint8))
        assert set(load("image", tmp_path)["test"][0]["input_ids"]) == {0}
    assert load("image", tmp_path)["test"][0]["input_ids"] == before


@pytest.mark.parametrize("binary", [False, True])
def test_pathfinder_of_the_release_in_three_disjoint_splits(tmp_path, binary):
    write_numbered(tmp_path / "pathfinder32/curv_contour_length_14", binary=binary)
    data = load("pathfinder32", tmp_path)
    numbers = {split: [row["input_ids"][0] for row in data[split]] for split in data}
    assert {split: len(numbers[split]) for split in data} == {"train": 16, "validation": 2, "test": 2}
    assert sorted(number for part in numbers.values() for number in part) == list(range(20))
    for split in data:
        assert data[split]["label"] == [number % 2 for number in numbers[split]]
        assert all(row["input_ids"] == [number] * 1024 for row, number in zip(data[split], numbers[split]))
    refused("has no curv_baseline/metadata", "pathfinder32", tmp_path, level="easy")


def same_pictures(rows, pictures):
    assert len(rows) == len(pictures)
    for row, picture in zip(rows, pictures):
        assert (row["input_ids"], row["label"]) == (picture.pixels.reshape(-1).tolist(), picture.label)


@pytest.mark.parametrize("side", [32, 128])
def test_pathfinder_is_generated_without_files_and_the_same_for_any_number(side, monkeypatch):
    monkeypatch.setattr("manticore.tasks.lra.examples.PIECE", 2)
    options = {"level": "easy", "num_validation": 1, "num_test": 1}
    data = load(f"pathfinder{side}", num_train=5, **options)
    for split, count in (("train", 5), ("validation", 1), ("test", 1)):
        same_pictures(data[split], list(pathfinder.examples(split, count, side=side, level="easy")))
    # a smaller number reads what is there
    monkeypatch.setattr(pathfinder, "draw", None)
    assert load(f"pathfinder{side}", num_train=4, **options)["train"][:] == data["train"][:4]


def test_generation_that_is_stopped_leaves_whole_pieces_and_goes_on_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr("manticore.tasks.lra.examples.PIECE", 2)
    options = {"level": "easy", "num_train": 6, "num_validation": 1, "num_test": 1}
    draw, drawn = pathfinder.draw, []

    def stopped_at_the_fourth(*arguments):
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(pathfinder, "draw", stopped_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        load("pathfinder32", **options)
    assert [path.suffix for path in (tmp_path / "cache" / "lra").iterdir()] == [".arrow"]
    data = load("pathfinder32", **options)
    # of eight images, two were there
    assert len(drawn) == 4 + 6
    same_pictures(data["train"], list(pathfinder.examples("train", 6, level="easy")))


def test_generated_pathfinder_in_the_release_s_layout_reads_back_the_same(tmp_path):
    images = list(pathfinder.examples("train", 20, level="easy"))
    write_pathfinder(tmp_path / "pathfinder32", images, "easy", batch=8)
    data = load("pathfinder32", tmp_path, level="easy")
    rows = sorted((*row["input_ids"], row["label"]) for split in data for row in data[split])
    assert rows == sorted((*image.pixels.reshape(-1).tolist(), image.label) for image in images)
    with pytest.raises(ManticoreError, match=r"has images already. Fix: "):
        write_pathfinder(tmp_path / "pathfinder32", images, "easy")


def test_a_batch_that_was_not_finished_is_not_read(tmp_path):
    def stopped():
        yield from pathfinder.examples("train", 11, level="easy")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pathfinder(tmp_path / "pathfinder32", stopped(), "easy", batch=10)
    data = load("pathfinder32", tmp_path, level="easy")
    assert sum(len(data[split]) for split in data) == 10


def test_an_empty_image_is_left_out_as_in_the_release(tmp_path):
    root = write_numbered(tmp_path / "pathfinder32/curv_baseline")
    (root / "imgs/2/sample_3.png").write_bytes(b"")
    data = load("pathfinder32", tmp_path, level="easy")
    assert sum(len(data[split]) for split in data) == 19


def test_path_x_comes_from_the_inner_copy(tmp_path):
    for folder, count in ((tmp_path / "lra_release", 10), (tmp_path / "lra_release/lra_release", 20)):
        write_numbered(folder / "pathfinder128/curv_contour_length_14", side=128, count=count)
    for data_dir in (tmp_path, tmp_path / "lra_release"):
        data = load("pathfinder128", data_dir)
        assert len(data["train"]) == 16
        assert len(data["train"][0]["input_ids"]) == 16384


def test_wrong_calls_are_one_line_each(tmp_path):
    refused("unknown task 'listop' .expected one of listops", "listop")
    refused("num_train is 0 .expected a whole number", "listops", num_train=0)
    refused("num_test is True .expected a whole number", "listops", num_test=True)
    refused("seed is -1 .expected a whole number", "listops", seed=-1)
    refused("level is 'middle' .expected one of easy", "pathfinder32", tmp_path, level="middle")
    refused("no such folder", "listops", tmp_path / "nowhere")
    refused("pass data_dir", "retrieval")
    for name in ("text", "image"):
        refused("cannot be had from the hub.*data_dir", name)


@pytest.mark.parametrize("name", list(ARENAS))
def test_a_folder_with_another_layout_is_one_line(tmp_path, name):
    refused(f"lra/{name} .*: has no .*Fix: pass as data_dir", name, tmp_path)


def test_rows_of_the_hub_are_read_or_refused():
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "white")]
    features = Features({"img": ImageFeature(), "label": Value("int64")})
    rows = list(hub_image_rows(Dataset.from_dict({"img": pictures, "label": [3, 9]}, features=features), "hub"))
    assert [(set(row["input_ids"].tolist()), row["label"]) for row in rows] == [({76}, 3), ({255}, 9)]
    for columns, message in (
        ({"img": pictures[:1], "label": [10]}, "hub, row 0: label out of range .got 10"),
        ({"img": [Image.new("L", (28, 30))], "label": [1]}, "hub, row 0: an image of 28 x 30 pixels"),
    ):
        with pytest.raises(ManticoreError, match=message):
            list(hub_image_rows(Dataset.from_dict(columns, features=features), "hub"))
    with pytest.raises(ManticoreError, match=r"hub: no column img.* Fix: "):
        list(hub_image_rows(Dataset.from_dict({"image": [1], "label": [1]}), "hub"))
    assert reviews_of_rows(Dataset.from_dict({"text": ["ü"], "label": [1]}), "hub") == [("ü".encode(), 1)]
    with pytest.raises(ManticoreError, match=r"hub, row 0: label out of range .got -1"):
        reviews_of_rows(Dataset.from_dict({"text": ["x"], "label": [-1]}), "hub")
    with pytest.raises(ManticoreError, match=r"hub: no column text.* Fix: "):
        reviews_of_rows(Dataset.from_dict({"review": ["x"], "label": [1]}), "hub")


def test_damaged_pairs(tmp_path):
    write_pairs(tmp_path / "ids", line="1.0\tA\tB")
    refused("line 1: 3 columns .it holds ids only", "retrieval", tmp_path / "ids")
    write_pairs(tmp_path / "label", line="2.0\tA\tB\tx\ty")
    refused("line 1: label out of range .got '2.0'", "retrieval", tmp_path / "label")
    write_pairs(tmp_path / "word", line="yes\tA\tB\tx\ty")
    refused("line 1: label out of range .got 'yes'", "retrieval", tmp_path / "word")
    # what failed leaves nothing behind
    assert list((tmp_path / "cache" / "lra").iterdir()) == []


def test_damaged_images(tmp_path):
    root = write_cifar(tmp_path / "cifar-10-batches-bin")
    batch = root / "data_batch_2.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    refused("data_batch_2.bin: 12291 bytes", "image", root)
    batch.write_bytes(b"\x0a" + content[1:])
    refused("image 0: label out of range .got 10", "image", root)
    reviews = write_reviews(tmp_path / "aclImdb")
    for path in (reviews / "test/pos").iterdir():
        path.unlink()
    refused("pos: no reviews", "text", reviews)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 3 1 1.0", " 3 2 1.0", "2.npy, line 4: label out of range"),
        ("imgs/2 sample_3.png 3 1 1.0 14 4 2 0.5 1 1", "imgs/2 sample_3.png", "line 4: too few columns .got 2"),
        ("sample_3.png", "sample_99.png", "line 4: no image"),
    ],
)
def test_damaged_pathfinder_metadata(tmp_path, old, new, message):
    root = write_numbered(tmp_path / "pathfinder32/curv_contour_length_14")
    path = root / "metadata/2.npy"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refused(message, "pathfinder32", tmp_path)


@pytest.mark.parametrize("way", ["up", "absolute", "linked image", "linked folder"])
def test_images_outside_the_release_are_not_read(tmp_path, way):
    root = write_numbered(tmp_path / "pathfinder32/curv_contour_length_14")
    image = next((root / "imgs").rglob("*.png"))
    outside = tmp_path / "outside"
    image.parent.rename(outside)
    if way == "linked folder":
        image.parent.symlink_to(outside)
    elif way == "linked image":
        image.parent.mkdir()
        for path in outside.iterdir():
            (image.parent / path.name).symlink_to(path)
    else:
        metadata = next(path for path in (root / "metadata").iterdir() if path.stem == image.parent.name)
        place = str(outside) if way == "absolute" else "../../outside"
        metadata.write_text(metadata.read_text().replace(str(image.parent.relative_to(root)), place))
    refused("metadata/.*line 1: leads out of", "pathfinder32", tmp_path)


def test_damaged_pathfinder_images(tmp_path):
    root = write_numbered(tmp_path / "pathfinder32/curv_contour_length_14")
    image = root / "imgs/2/sample_3.png"
    image.write_text("no image")
    refused("sample_3.png: cannot be read as an image", "pathfinder32", tmp_path)
    Image.new("RGB", (32, 32)).save(image)
    refused("mode RGB", "pathfinder32", tmp_path)
    Image.new("L", (16, 32)).save(image)
    refused("16 x 32 pixels", "pathfinder32", tmp_path)
    (root / "metadata/2.npy").write_bytes(b"\x93NUMPY broken")
    refused("cannot be read as metadata", "pathfinder32", tmp_path)
