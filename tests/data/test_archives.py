"""The archives of CIFAR-10 and CIFAR-100."""

import builtins
import functools
import gzip
import io
import os
import pickle
import tarfile

import cifar
import numpy as np
import pytest
from helpers import assert_one_line

from nasi_jax import data
from nasi_jax.data.dataset import STATISTICS

forms = pytest.mark.parametrize("form", cifar.FORMS)


def refused(path, *parts, split="train"):
    with pytest.raises(ValueError) as error:
        data.load(str(path), split=split)
    assert type(error.value) is ValueError
    assert_one_line(error, str(path), *parts)


@forms
@pytest.mark.parametrize("split", data.SPLITS)
def test_images_labels_names_and_statistics(tmp_path, form, split):
    splits = cifar.examples(form)
    path = cifar.write(tmp_path / f"{form}.tar.gz", form, splits)
    dataset = data.load(path, split=split)
    images, labels = splits["test" if split == "test" else "train"]
    assert dataset.num_examples == len(images)
    assert dataset.class_names == tuple(cifar.NAMES[cifar.data_set(form)])
    assert dataset.num_classes == len(dataset.class_names)
    assert (dataset.scale, dataset.image_shape) == (255, (32, 32, 3))
    raw, fetched = dataset.images(np.arange(len(images)))
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, images)
    np.testing.assert_array_equal(fetched, labels)
    mean, std = STATISTICS[cifar.data_set(form).replace("-", "")]
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(dataset.fetch(np.arange(3)).inputs, expected[:3], atol=1e-5)


@pytest.mark.parametrize("form", ["cifar-10-python", "cifar-100-python"])
def test_the_pickles_are_those_that_numpy_reads(form):
    """So that the archives that these tests write are like the official ones."""
    splits = cifar.examples(form)
    files = cifar.contents(form, splits)
    batch = pickle.loads(files.get("test") or files["test_batch"], encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], cifar.rows(splits["test"][0]))
    assert b"\x80\x02" in files.get("test", files.get("test_batch"))[:2]


@forms
def test_archives_are_told_from_their_content(tmp_path, form):
    splits = cifar.examples(form)
    for name, mode in [("images.tgz", "w:gz"), ("download", "w:gz"), ("images.tar", "w")]:
        path = cifar.write(tmp_path / name, form, splits, mode=mode)
        raw, _ = data.load(path, split="test").images(np.arange(7))
        np.testing.assert_array_equal(raw, splits["test"][0])


def test_pickles_of_python_3_and_columns_first(tmp_path):
    splits = cifar.examples("cifar-100-python")
    images, labels = splits["train"]

    def change(files):
        batch = {b"data": np.asfortranarray(cifar.rows(images)), b"fine_labels": labels.tolist()}
        files["train"] = pickle.dumps(batch, protocol=2)

    path = cifar.write(tmp_path / "a.tar.gz", "cifar-100-python", splits, change)
    raw, fetched = data.load(path).images(np.arange(20))
    np.testing.assert_array_equal(raw, images)
    np.testing.assert_array_equal(fetched, labels)


def test_random_labels_and_resizing(tmp_path):
    path = cifar.write(tmp_path / "a.tar.gz", "cifar-100-binary", cifar.examples(cifar.FORMS[3]))
    dataset = data.load(path, labels="random", image_size=16)
    assert dataset.fetch(np.arange(20)).inputs.shape == (20, 16, 16, 3)
    assert len(set(np.asarray(dataset.fetch(np.arange(20)).labels).tolist())) > 10


# Nothing is executed


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_3", "test_batch"])
def test_a_malicious_pickle_is_refused(tmp_path, name):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Malicious(made)))
    assert made.exists()  # it works, so that an unpickler that ran it would be seen
    made.unlink()

    def change(files):
        batch = pickle.loads(files[name], encoding="bytes")
        files[name] = pickle.dumps({**batch, b"filenames": Malicious(made)}, protocol=2)

    splits = cifar.examples("cifar-10-python")
    path = cifar.write(tmp_path / "a.tar.gz", "cifar-10-python", splits, change)
    split = "test" if name == "test_batch" else "train"
    refused(path, f"{name}: ", "asks for posix.system, which is refused", split=split)
    assert not made.exists()


@pytest.mark.parametrize(
    "content", [builtins.eval, functools.partial, np.float64, np.load, io.open, getattr]
)
def test_other_globals_are_refused(tmp_path, content):
    def change(files):
        files["train"] = pickle.dumps({b"data": content}, protocol=2)

    splits = cifar.examples("cifar-100-python")
    path = cifar.write(tmp_path / "a.tar.gz", "cifar-100-python", splits, change)
    refused(path, "train: ", "the pickle asks for ", content.__name__, "is refused")


def test_arrays_of_objects_are_refused(tmp_path):
    def change(files):
        files["train"] = pickle.dumps({b"data": np.array([{}])}, protocol=2)

    splits = cifar.examples("cifar-100-python")
    path = cifar.write(tmp_path / "a.tar.gz", "cifar-100-python", splits, change)
    refused(path, "train: ", "must be of numbers, got the dtype '|O8'")


# Wrong archives


@forms
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_cut_off_archives(tmp_path, form, mode):
    path = tmp_path / "a.tar.gz"
    cifar.write(path, form, cifar.examples(form), mode=mode)
    whole = path.read_bytes()
    for part in (0, 1, 100, 600, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:part])
        refused(path)
    if mode == "w:gz":  # its checksum is gone
        path.write_bytes(whole[:-8])
        refused(path, "EOFError")


@forms
def test_damaged_archives(tmp_path, form):
    """A byte of a pixel is another, as only the checksum tells."""
    path = tmp_path / "a.tar.gz"
    plain = io.BytesIO()
    cifar.write(tmp_path / "a.tar", form, cifar.examples(form), mode="w")
    with gzip.GzipFile(fileobj=plain, mode="w", compresslevel=0) as file:
        file.write((tmp_path / "a.tar").read_bytes())
    content = bytearray(plain.getvalue())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, "BadGzipFile: CRC check failed")


@pytest.mark.parametrize(
    ("form", "split", "name", "content", "parts"),
    [
        ("cifar-10-python", "train", "data_batch_4", None, ["incomplete", "data_batch_4 missing"]),
        ("cifar-10-python", "test", "test_batch", None, ["incomplete: test_batch missing"]),
        ("cifar-10-binary", "train", "batches.meta.txt", None, ["batches.meta.txt missing"]),
        ("cifar-100-binary", "test", "test.bin", None, ["test.bin missing, of cifar100"]),
        ("cifar-10-binary", "train", "data_batch_2.bin", b"1" * 3000, ["data_batch_2.bin: "]),
        ("cifar-10-binary", "train", "data_batch_2.bin", b"", ["data_batch_2.bin: ", "[0, 3072]"]),
        (
            *("cifar-10-binary", "train", "data_batch_2.bin", bytes([10]) * 3073),
            ["data_batch_2.bin: labels must be from 0 to 9", "batches.meta.txt", "got 10 to 10"],
        ),
        ("cifar-10-binary", "train", "batches.meta.txt", b"cat", ["2 different classes", "cat"]),
        ("cifar-10-binary", "train", "batches.meta.txt", b"cat\ncat", ["2 different classes"]),
        ("cifar-10-python", "train", "batches.meta", b"", ["batches.meta: EOFError"]),
        ("cifar-10-python", "train", "batches.meta", b"text", ["batches.meta: UnpicklingError"]),
        ("cifar-10-python", "train", "data_batch_5", {}, ["data_batch_5: KeyError: b'data'"]),
        ("cifar-10-python", "train", "data_batch_5", [1], ["data_batch_5: TypeError"]),
        (
            *("cifar-10-python", "train", "data_batch_5"),
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
            ["data_batch_5: must hold images [N, 3072] in uint8", "[2, 3072] and int64 [1]"],
        ),
        (
            *("cifar-10-python", "train", "data_batch_5"),
            {b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]},
            ["data_batch_5: ", "got float32 [2, 3072]"],
        ),
        (
            *("cifar-10-python", "train", "data_batch_5"),
            {b"data": np.zeros((2, 1024), np.uint8), b"labels": [1, 2]},
            ["data_batch_5: ", "got uint8 [2, 1024]"],
        ),
        (
            *("cifar-10-python", "train", "data_batch_5"),
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 0.5]},
            ["data_batch_5: ", "integer labels [N]", "float64 [2]"],
        ),
        (
            *("cifar-10-python", "train", "data_batch_5"),
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]},
            ["data_batch_5: labels must be from 0 to 9", "got -1 to 1"],
        ),
        ("cifar-100-python", "train", "meta", {b"fine_label_names": 3}, ["meta: TypeError"]),
    ],
)
def test_wrong_contents(tmp_path, form, split, name, content, parts):
    def change(files):
        del files[name]
        if content is not None:
            pickled = not isinstance(content, bytes)
            files[name] = pickle.dumps(content, protocol=2) if pickled else content

    path = cifar.write(tmp_path / "a.tar.gz", form, cifar.examples(form), change)
    refused(path, *parts, split=split)


def test_other_archives(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "code.py")
    refused(path, "none of the files of CIFAR-10 or CIFAR-100")
    path.write_bytes(gzip.compress(b"text"))
    refused(path, "ReadError")
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-100-python/train")
        link.type, link.linkname = tarfile.SYMTYPE, __file__
        archive.addfile(link)
    refused(path)
    path.write_bytes(b"text")
    refused(path, "ReadError")
    refused(tmp_path / "absent.tar.gz", "there is no file or folder", "digits", ".npz", "CIFAR")
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    refused(other, "is not a file that can be read", "digits", ".npz", "CIFAR", ".parquet")
