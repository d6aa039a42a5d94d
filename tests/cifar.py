"""Small archives in the layouts in which CIFAR-10 and CIFAR-100 are downloaded."""

import io
import pickle
import struct
import tarfile

import numpy as np

NAMES = {
    "cifar-10": [f"thing{index}" for index in range(10)],
    "cifar-100": [f"fine_{index}" for index in range(100)],
}
FORMS = ("cifar-10-python", "cifar-10-binary", "cifar-100-python", "cifar-100-binary")


def examples(form, *, seed=0, train=20, test=7):
    """Images `[N, 32, 32, 3]` and labels `[N]` of both splits."""
    rng = np.random.default_rng(seed)
    classes = len(NAMES[data_set(form)])
    return {
        split: (rng.integers(0, 256, (size, 32, 32, 3), np.uint8), rng.integers(0, classes, size))
        for split, size in (("train", train), ("test", test))
    }


def data_set(form):
    return form.rpartition("-")[0]


def write(path, form, splits, change=lambda files: None, mode="w:gz"):
    """Writes the archive of a form, once `change` has changed its files' contents in place."""
    files = contents(form, splits)
    change(files)
    folder = {
        "cifar-10-python": "cifar-10-batches-py",
        "cifar-10-binary": "cifar-10-batches-bin",
    }.get(form, form)
    with tarfile.open(path, mode) as archive:
        member = tarfile.TarInfo(folder)
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def contents(form, splits):
    """What the files of an archive hold, by their names, as its authors ordered them."""
    names = NAMES[data_set(form)]
    coarse = [f"coarse_{index}" for index in range(20)]
    train, test = splits["train"], splits["test"]
    if form == "cifar-10-python":
        meta = {"num_cases_per_batch": 4, "label_names": names, "num_vis": 3072}
        batches = {
            f"data_batch_{number}": python({"labels": labels.tolist(), **common(images)})
            for number, (images, labels) in batched(train)
        }
        return {
            "batches.meta": python(meta),
            "readme.html": b"<html></html>",
            **batches,
            "test_batch": python({"labels": test[1].tolist(), **common(test[0])}),
        }
    if form == "cifar-10-binary":
        return {
            "test_batch.bin": binary(test[0], test[1]),
            "batches.meta.txt": ("\n".join(names) + "\n\n").encode(),
            **{f"data_batch_{number}.bin": binary(*part) for number, part in batched(train)},
        }
    if form == "cifar-100-python":
        files = {
            split: python(
                {
                    "fine_labels": labels.tolist(),
                    "coarse_labels": (labels % 20).tolist(),
                    **common(images),
                }
            )
            for split, (images, labels) in splits.items()
        }
        meta = {"fine_label_names": names, "coarse_label_names": coarse}
        return {"meta": python(meta), "file.txt~": b"", **files}
    return {
        "coarse_label_names.txt": ("\n".join(coarse) + "\n").encode(),
        "fine_label_names.txt": ("\n".join(names) + "\n").encode(),
        **{
            f"{split}.bin": binary(images, labels % 20, labels)
            for split, (images, labels) in splits.items()
        },
    }


def batched(examples):
    """The training images in five parts, numbered from 1."""
    parts = zip(*(np.array_split(each, 5) for each in examples), strict=True)
    return enumerate(parts, start=1)


def rows(images):
    """All red pixels of an image, then all green, then all blue, `[N, 3072]`."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))


def binary(images, *labels):
    columns = [each.astype(np.uint8)[:, None] for each in labels]
    return np.hstack([*columns, rows(images)]).tobytes()


def common(images):
    names = [f"{index}.png" for index in range(len(images))]
    return {"data": rows(images), "filenames": names, "batch_label": "batch 1 of 5"}


class Pickler(pickle._Pickler):
    """Writes strings as Python 2 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, obj):
        content = obj if isinstance(obj, bytes) else obj.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string


def python(content):
    """A pickle as Python 2 and the numpy of its time wrote it."""
    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
