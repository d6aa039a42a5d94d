"""Data sets of tensorflow-datasets, which is imported here alone, inside the function."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from nasi_jax.data.dataset import ACCEPTED, STATISTICS, Dataset, Read, known, measured_sample
from nasi_jax.data.image import CHANNELS
from nasi_jax.storage.files import one_line


def load(name: str, split: str, image_size: int, data_dir: str | None) -> Dataset:
    """Opens a data set that tensorflow-datasets has prepared on this machine.

    Args:
      name: what tensorflow-datasets calls it.
      split: which images.
      image_size: height and width that they are brought to.
      data_dir: where it is; the default of tensorflow-datasets if None.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} was looked for in tensorflow-datasets, which cannot be imported "
            f"({one_line(error)}): pip install 'nasi-jax[data]'; {ACCEPTED}"
        ) from error

    # Other names that tensorflow-datasets takes, such as huggingface:x, go to the network.
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", name):
        raise ValueError(
            f"data set {name!r} is no name in tensorflow-datasets (name, name/config or "
            f"name:1.2.3); {ACCEPTED}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        features = dict(builder.info.features.items())
    except Exception as error:  # each builder fails in its own way
        raise ValueError(
            f"tensorflow-datasets cannot open {name!r}: {one_line(error)}; {ACCEPTED}"
        ) from error
    image, label = features.get("image"), features.get("label")
    if (
        not isinstance(image, tfds.features.Image)
        or image.shape[-1] not in (1, CHANNELS)
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise ValueError(
            f"data set {name!r} must have an 'image' of 1 or 3 channels and a class 'label', "
            f"got {one_line(image)} and {one_line(label)} among {sorted(features)}"
        )

    # The files before anything else: what is missing, tensorflow-datasets looks for on the
    # network, for minutes. Its command `tfds build` fails on a plain installation.
    recipe = (
        "to prepare it, pip install tensorflow and run in Python: import tensorflow_datasets as "
        f"tfds; tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
        f".download_and_prepare(); {ACCEPTED}"
    )
    if not builder.is_prepared():
        raise ValueError(f"data set {name!r} is not prepared in {builder.data_dir}; {recipe}")

    def reader(*choices: str) -> tuple[Callable[[np.ndarray], Read], int]:
        """The function that reads the first split of `choices` that exists, and its length."""
        found = [choice for choice in choices if choice in builder.info.splits]
        if not found:
            raise ValueError(
                f"data set {name!r} must have a split {' or '.join(map(repr, choices))}, "
                f"got {sorted(builder.info.splits)}"
            )
        try:
            source = builder.as_data_source(split=found[0])
        except Exception as error:  # mostly another file format
            raise ValueError(
                f"data set {name!r} in {builder.data_dir} cannot be read as array_record files "
                f"({one_line(error)}); remove it or choose another data_dir, and {recipe}"
            ) from error
        files = builder.info.splits[found[0]].filepaths
        missing = [path for path in files if not path.exists()]
        if missing:
            raise ValueError(
                f"data set {name!r} is incomplete: {len(missing)} files such as {missing[0]} are "
                f"missing; remove it, and {recipe}"
            )

        def read(indices: np.ndarray) -> Read:
            examples = source.__getitems__(indices.tolist())
            return [example["image"] for example in examples], np.array(
                [example["label"] for example in examples]
            )

        return read, len(source)

    test = ("validation",) if builder.name == "imagenet2012" else ("test", "validation")
    read, num_examples = reader(*(test if split == "test" else ("train",)))
    if builder.name in STATISTICS:
        normalization = known(builder.name)
    else:
        normalization = measured_sample(*reader("train"))
    return Dataset(
        name=name,
        class_names=tuple(label.names),
        num_examples=num_examples,
        image_shape=(image_size, image_size, CHANNELS),
        **normalization._asdict(),
        read=read,
    )
