"""Parquet files of Hugging Face's form."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import assert_one_line, small_images
from PIL import Image

from nasi_jax import data


def encoded(image, form="png"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return {"bytes": file.getvalue(), "path": "image.png"}


def write(path, images, labels, *, columns=("img", "label"), names=None, rows=1000):
    """As `datasets` writes a split of images, in row groups of so many rows."""
    cells = [encoded(image) if isinstance(image, np.ndarray) else image for image in images]
    table = pa.table({columns[0]: cells, columns[1]: labels})
    if names:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"names": names, "_type": "ClassLabel"},
        }
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


def refused(path, *parts, split="train"):
    with pytest.raises(ValueError) as error:
        data.load(str(path), split=split)
    assert type(error.value) is ValueError
    assert_one_line(error, *parts)


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "fine_label")])
@pytest.mark.parametrize("rows", [1000, 7])
def test_a_file(tmp_path, columns, rows):
    images, labels = small_images(40, 8, 8, 3), np.arange(40) % 4
    names = ["ant", "bee", "cat", "dog", "elk"]
    path = write(tmp_path / "a.parquet", images, labels, columns=columns, names=names, rows=rows)
    dataset = data.load(path, image_size=8)
    assert dataset.class_names == tuple(names)
    assert (dataset.num_examples, dataset.scale) == (40, 255)
    indices = np.array([39, 0, 7, 0, 14, 6])
    raw, fetched = dataset.images(indices)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, images[indices])
    np.testing.assert_array_equal(fetched, labels[indices])
    np.testing.assert_allclose(dataset.mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, images.std((0, 1, 2)), rtol=1e-5)


def test_a_file_is_told_from_its_content_and_may_have_no_names(tmp_path):
    images = [small_images(28, 20 + index) for index in range(6)]
    path = write(tmp_path / "download", images, [0, 1, 2, 0, 1, 2], columns=("image", "label"))
    dataset = data.load(path, image_size=28)
    assert dataset.class_names == ("0", "1", "2")
    inputs = np.asarray(dataset.fetch(np.arange(6)).inputs)
    assert inputs.shape == (6, 28, 28, 3)
    np.testing.assert_array_equal(inputs[..., 0], inputs[..., 2])


@pytest.mark.parametrize("other", ["test", "validation"])
def test_a_folder(tmp_path, other):
    train, test = small_images(10, 8, 8, 3), small_images(4, 8, 8, 3, seed=1) // 2
    folder = tmp_path / "plain_text"
    write(folder / "train-00001-of-00002.parquet", train[6:], [0, 1, 0, 2])
    write(folder / "train-00000-of-00002.parquet", train[:6], [2, 2, 2, 1, 1, 1], rows=4)
    write(folder / f"{other}-00000-of-00001.parquet", test, [1, 1, 0, 0])
    every, first, second = (
        data.load(str(folder), split=split, image_size=8) for split in data.SPLITS
    )
    for dataset in (first, second):
        np.testing.assert_array_equal(dataset.std, every.std)
        assert dataset.class_names == ("0", "1", "2")
    for dataset, images, labels in (
        (every, train, [2, 2, 2, 1, 1, 1, 0, 1, 0, 2]),
        (second, test, [1, 1, 0, 0]),
    ):
        raw, fetched = dataset.images(np.arange(dataset.num_examples))
        np.testing.assert_array_equal(raw, images)
        np.testing.assert_array_equal(fetched, labels)


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
    """What does not fit into memory is read again, and each group once for a batch."""
    monkeypatch.setattr("nasi_jax.data.parquet._BYTES_KEPT", 1)
    images = small_images(40, 8, 8, 3)
    path = write(tmp_path / "a.parquet", images, np.arange(40) % 4, rows=10)
    dataset = data.load(path, image_size=8)
    read = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(file, number, **options):
        read.append(number)
        return read_row_group(file, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    indices = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(dataset.images(indices)[0], images[indices])
    assert sorted(read) == read and set(read) == {0, 1, 2, 3} and len(read) <= 5


def test_pyarrow_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", small_images(4, 8, 8, 3), [0, 1, 0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # makes the import fail
    refused(path, path, "needs pyarrow", "pip install 'nasi-jax[parquet]'")


IMAGES = list(small_images(4, 8, 8, 3))


@pytest.mark.parametrize(
    ("images", "labels", "columns", "parts"),
    [
        (IMAGES, [0, 1, 0, 1], ("picture", "label"), ["image or img", "picture: struct<bytes"]),
        (IMAGES, [0, 1, 0, 1], ("img", "class"), ["label, labels or fine_label", "class: int64"]),
        (IMAGES, [0.5, 1, 0, 1], ("img", "label"), ["(integers)", "label: double"]),
        ([b"x"] * 4, [0, 1, 0, 1], ("img", "label"), ["a struct of bytes", "img: binary"]),
        (IMAGES, [0, 1, None, 1], ("img", "label"), ["label must be there in every row, got 1"]),
        (IMAGES, [0, -1, 0, 1], ("img", "label"), ["labels must be from 0 to 1", "got -1 to 1"]),
        (IMAGES, [1, 1, 1, 1], ("img", "label"), ["at least 2 classes, got only 1"]),
        ([*IMAGES[:3], None], [0, 1, 0, 1], ("img", "label"), ["row 3 has no bytes in img"]),
        (
            *([*IMAGES[:3], {"bytes": None, "path": "x"}], [0, 1, 0, 1], ("img", "label")),
            ["row 3 has no bytes in img"],
        ),
        (
            *([*IMAGES[:3], {"bytes": b"text", "path": "x"}], [0, 1, 0, 1], ("img", "label")),
            ["row 3 as an image: Pillow knows no such form"],
        ),
    ],
)
def test_wrong_columns(tmp_path, images, labels, columns, parts):
    path = write(tmp_path / "a.parquet", images, labels, columns=columns, rows=3)
    refused(path, path, *parts)


def test_wrong_names(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, IMAGES, [0, 1, 2, 1], names=["cat", "dog"])
    refused(path, "labels must be from 0 to 1", "got 0 to 2")
    table = pq.read_table(path).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, path)
    refused(path, f"{path}: the metadata of huggingface: JSONDecodeError")


def test_no_rows(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"img": pa.array([], kind), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "holds no image")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, IMAGES, [0, 1, 0, 1])
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-20]):
        path.write_bytes(content)
        refused(path, f"{path}: ")


@pytest.mark.parametrize(("index", "name"), [(0, "img"), (-1, "label")])
def test_columns_of_other_lengths(tmp_path, index, name):
    """The values of a column come in a page that is told to hold indices of values."""
    path = tmp_path / "a.parquet"
    write(path, IMAGES, [0, 1, 0, 1])
    group = pq.read_metadata(path).row_group(0)
    offset = group.column(index % group.num_columns).dictionary_page_offset
    content = bytearray(path.read_bytes())
    assert content[offset : offset + 2] == b"\x15\x04"
    content[offset + 1] = 6
    path.write_bytes(content)
    refused(path, f"{path}: {name} has ", " rows of 4")


def test_wrong_test_images(tmp_path):
    path = write(tmp_path / "hf" / "train-00000-of-00001.parquet", IMAGES, [0, 1, 0, 1])
    refused(path, "is one file, without test images", "test-*.parquet", split="test")
    refused(tmp_path / "hf", "must hold files test-*.parquet or validation", split="test")
    write(tmp_path / "hf" / "test-00000-of-00001.parquet", IMAGES, [0, 1, 0, 2])
    refused(tmp_path / "hf", "test-", "labels must be from 0 to 1", "got 0 to 2", split="test")


def test_incomplete_folders(tmp_path):
    write(tmp_path / "hf" / "train-00001-of-00003.parquet", IMAGES, [0, 1, 0, 1])
    refused(tmp_path / "hf", "hf is incomplete: train-00000-of-00003.parquet is missing")
    write(tmp_path / "other" / "images.parquet", IMAGES, [0, 1, 0, 1])
    refused(tmp_path / "other", "must hold files train-*.parquet, and holds none")
