"""The official files of NAS-Bench-201 and NAS-Bench-101 in small, as their authors wrote them."""

import base64
import bz2
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np

from nasi_jax.cells.nasbench101 import Nasbench101Genotype

CELL = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+"
    "|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)
OTHER = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|"
SPEC = Nasbench101Genotype(
    matrix=((0, 1, 1, 0), (0, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 0)),
    ops=("input", "conv3x3-bn-relu", "maxpool3x3", "output"),
)

SEEDS = {"12": (111, 777), "200": (777, 888, 999)}
SPLITS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
# What the sample in D-X-Y/NATS-Bench says of the benchmark's cell 0, by seed.
CELL_0 = {
    ("200", "cifar10", "ori-test"): (85.62, 86.18, 85.79),
    ("200", "cifar10-valid", "x-valid"): (82.09199998291015, 81.61599997314453, 82.24000001464844),
    ("12", "cifar10-valid", "x-valid"): (64.01599998291016, 62.71199997802734),
}
COLUMNS = {
    "c10_test": ("cifar10", "ori-test"),
    "c10valid_val": ("cifar10-valid", "x-valid"),
    "c10valid_test": ("cifar10-valid", "ori-test"),
    "c100_val": ("cifar100", "x-valid"),
    "c100_test": ("cifar100", "x-test"),
    "in16_val": ("ImageNet16-120", "x-valid"),
    "in16_test": ("ImageNet16-120", "x-test"),
}


class Named:
    """A global that is pickled by name."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError


class Tensor:
    pass


class Storage:
    pass


class Pickler(pickle._Pickler):
    """Pickles as NumPy 1 and torch do."""

    def reducer_override(self, obj):
        if isinstance(obj, np.float64):
            return Named("numpy.core.multiarray", "scalar"), (np.dtype("f8"), obj.tobytes())
        if isinstance(obj, Tensor):
            rebuild = Named("torch._utils", "_rebuild_tensor_v2")
            return rebuild, (Storage(), 0, (2,), (1,), False, OrderedDict())
        return "global" if isinstance(obj, Named) else NotImplemented

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", Named("torch", "FloatStorage"), "0", "cpu", 2, None)
        return None

    def save_global(self, obj, name=None):
        if not isinstance(obj, Named):
            super().save_global(obj, name)
        elif self.proto < 4:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)


def pickled(obj, protocol):
    file = io.BytesIO()
    Pickler(file, protocol).dump(obj)
    return file.getvalue()


def trial(dataset, seed, epochs, accuracies, params, weights):
    """A ResultsCount.state_dict()."""
    last = epochs - 1
    return {
        "name": dataset,
        "net_state_dict": weights,
        "train_acc1es": {0: 10.0, last: 99.0},
        "train_acc5es": {0: 50.0, last: 100.0},
        "train_losses": {0: 2.0, last: 0.1},
        "train_times": OrderedDict([(0, 12.5), (last, 12.5)]),
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": CELL, "class_num": 10},
        "params": np.float64(params),
        "flop": 15.64737,
        "seed": f"{seed:04d}",
        "epochs": epochs,
        "latency": [np.float64(0.0139)],
        "eval_names": list(accuracies),
        "eval_acc1es": {f"{split}@{last - 1}": 1.0 for split in accuracies}
        | {f"{split}@{last}": accuracy for split, accuracy in accuracies.items()},
        "eval_times": {f"{split}@{last}": 1.5 for split in accuracies},
        "eval_losses": {f"{split}@{last}": 0.5 for split in accuracies},
    }


def results(index, arch_str, known=(), datasets=tuple(SPLITS), params=0.129306, weights=None):
    """ArchResults.state_dict() after 12 and after 200 epochs, and the means to be read."""
    generator = random.Random(index)
    means, by_epochs = {}, OrderedDict()
    for epochs, seeds in SEEDS.items():
        accuracies = {
            (dataset, split): dict(
                zip(
                    seeds,
                    dict(known).get(
                        (epochs, dataset, split), [generator.uniform(10, 90) for _ in seeds]
                    ),
                    strict=True,
                )
            )
            for dataset in datasets
            for split in SPLITS[dataset]
        }
        means |= {
            f"{column}_{epochs}": np.mean(list(accuracies[key].values()))
            for column, key in COLUMNS.items()
            if key in accuracies
        }
        by_epochs[epochs] = {
            "arch_index": index,
            "arch_str": arch_str,
            "all_results": {
                (dataset, seed): trial(
                    dataset,
                    seed,
                    int(epochs),
                    {split: accuracies[dataset, split][seed] for split in SPLITS[dataset]},
                    params[seed] if isinstance(params, dict) else params,
                    weights,
                )
                for dataset in datasets
                for seed in seeds
            },
            "dataset_seed": {dataset: list(seeds) for dataset in datasets},
            "clear_net_done": weights is None,
        }
    return by_epochs, means


def members(architectures):
    meta = {
        "meta_archs": [CELL, OTHER],
        "total_archs": 2,
        "arch2infos": None,
        "evaluated_indexes": set(),
    }
    files = {f"{index:06d}": by_epochs for index, by_epochs in architectures.items()}
    return {
        f"{name}.pickle.pbz2": bz2.compress(pickled(content, 4))
        for name, content in (files | {"meta": meta}).items()
    }


def write_dir(path, architectures):
    path.mkdir()
    for name, content in members(architectures).items():
        (path / name).write_bytes(content)


def write_tar(path, architectures):
    with tarfile.open(path, "w") as archive:
        for name, content in members(architectures).items():
            info = tarfile.TarInfo(f"NATS-tss-v1_0-3ffb9-simple/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def whole(architectures, names=("less", "full")):
    return {
        "meta_archs": [CELL, OTHER],
        "total_archs": 2,
        "arch2infos": {
            index: dict(zip(names, by_epochs.values(), strict=True))
            if isinstance(by_epochs, dict)
            else by_epochs
            for index, by_epochs in architectures.items()
        },
        "evaluated_indexes": {0, 1},
    }


def write_pbz2(path, architectures):
    content = whole(architectures, ("12", "200"))
    path.write_bytes(bz2.compress(pickled(content, 4)))


def write_legacy(path, architectures):
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, whole(architectures), ["0"])
    storage = struct.pack("<qff", 2, 1, 2)
    path.write_bytes(b"".join(pickled(part, 2) for part in parts) + storage)


def write_zip(path, architectures):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(whole(architectures), 2))
        archive.writestr("archive/data/0", struct.pack("<ff", 1, 2))
        archive.writestr("archive/version", "3\n")


WRITERS = {
    "NATS-tss-v1_0-3ffb9-simple": write_dir,
    "NATS-tss-v1_0-3ffb9-simple.tar": write_tar,
    "NATS-tss-v1_0-3ffb9.pickle.pbz2": write_pbz2,
    "NAS-Bench-201-v1_1-096897.pth": write_legacy,
    "NAS-Bench-201-v1_1-zip.pth": write_zip,
}


def crc32c(content):
    """The checksum of TFRecord files, masked."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value):
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


def evaluation(epoch, seconds, train, val, test):
    """The protobuf message EvaluationData."""
    doubles = (epoch, seconds, train, val, test)
    content = b"".join(
        varint(key << 3 | 1) + struct.pack("<d", x) for key, x in enumerate(doubles, start=1)
    )
    checkpoint = b"model.ckpt-1"
    return content + varint(6 << 3 | 2) + varint(len(checkpoint)) + checkpoint


def record(cell, epochs, val, test, seconds, params=8_555_530):
    """One record, with the message ModelMetrics in it."""
    evaluations = (
        evaluation(0, 0, 0.1, 0.1, 0.1),
        evaluation(epochs / 2, seconds / 2, 0.5, 0.4, 0.3),
        evaluation(epochs, seconds, 1.0, val, test),
    )
    metrics = b"".join(varint(1 << 3 | 2) + varint(len(e)) + e for e in evaluations)
    metrics += varint(2 << 3) + varint(params) + varint(3 << 3 | 1) + struct.pack("<d", 1e4)
    bits = "".join(str(bit) for row in cell.matrix for bit in row)
    encoded = base64.b64encode(metrics).decode()
    fields = [cell.module_hash(), epochs, bits, ",".join(cell.ops), encoded]
    return json.dumps(fields).encode()


def tfrecord(records):
    return b"".join(
        (length := struct.pack("<Q", len(content))) + crc32c(length) + content + crc32c(content)
        for content in records
    )


SMALL = Nasbench101Genotype(matrix=((0, 1), (0, 0)), ops=("input", "output"))
RECORDS = (
    record(SPEC, 108, 0.9, 0.8, 100.0),
    record(SMALL, 108, 0.5, 0.4, 10.0, params=1000),
    record(SPEC, 108, 0.94, 0.87, 130.0),
    record(SPEC, 12, 0.7, 0.6, 11.0),
    record(SPEC, 108, 0.92, 0.82, 100.0),
)
