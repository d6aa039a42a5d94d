"""Tables of benchmarks: the real compact files, official files written here, and wrong ones."""

import base64
import bz2
import gzip
import io
import json
import math
import os
import pickle
import random
import struct
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from official import (
    CELL,
    CELL_0,
    COLUMNS,
    OTHER,
    RECORDS,
    SMALL,
    SPEC,
    WRITERS,
    Named,
    Pickler,
    Tensor,
    crc32c,
    pickled,
    record,
    results,
    tfrecord,
    whole,
    write_tar,
)

from nasi_jax import tables
from nasi_jax.cells.darts import DARTS_OPS, DartsGenotype
from nasi_jax.cells.nasbench101 import Nasbench101Genotype
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS, Nasbench201Genotype
from nasi_jax.cells.transnas101 import Transnas101Genotype

DARTS = DartsGenotype(
    normal=[(DARTS_OPS[1], 0), (DARTS_OPS[3], 1)] * 4,
    reduce=[(DARTS_OPS[1], 0), (DARTS_OPS[3], 1)] * 4,
)


@pytest.fixture(scope="module")
def nasbench201(data_file):
    return tables.load(data_file("nasbench201_cifar10.csv"))


@pytest.fixture(scope="module")
def nasbench101(data_file):
    return tables.load(data_file("nasbench101_30k.csv.gz"))


def refused(path, *parts, **options):
    with pytest.raises(ValueError) as caught:
        tables.load(path, **options)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1
    for part in (str(path), *parts):
        assert part in message, message


def assert_equal(table, other):
    assert (table.benchmark, table.cells) == (other.benchmark, other.cells)
    assert table.hashes == other.hashes
    assert table.columns == other.columns
    for column in table.columns:
        np.testing.assert_array_equal(table.values[column], other.values[column])


# NAS-Bench-201


def test_nasbench201(nasbench201):
    assert nasbench201.benchmark == "nasbench201"
    assert len(nasbench201) == 15_625
    assert nasbench201.columns == (
        *("index", "iso_class", "params"),
        *("c10_test_200", "c10valid_val_200", "c10_test_12", "c10valid_val_12"),
    )
    best = int(nasbench201.values["c10_test_200"].argmax())
    assert nasbench201.values["index"][best] == best == 6111
    cell = nasbench201.genotype(best)
    assert cell in nasbench201
    assert nasbench201.index(cell) == best
    assert nasbench201.look_up(cell, "c10_test_200") == pytest.approx(94.37, abs=0.005)
    skips = Nasbench201Genotype(ops=("skip_connect",) * 6)
    assert nasbench201.look_up(skips, "c10_test_200") == pytest.approx(54.30, abs=0.005)
    cells = [nasbench201.genotype(row) for row in range(len(nasbench201))]
    np.testing.assert_array_equal(nasbench201.indices(cells), range(len(cells)))


def test_an_isomorphic_cell_stands_in(nasbench201, data_file, tmp_path):
    lines = data_file("nasbench201_cifar10.csv").read_text().splitlines()
    first = {line.split(",")[2]: line for line in reversed(lines[1:])}
    path = tmp_path / "classes.csv"
    path.write_text("\n".join([lines[0], *first.values()]))
    table = tables.load(path)
    assert len(table) == 6_466
    cells = [nasbench201.genotype(row) for row in range(len(nasbench201))]
    rows = table.indices(cells)
    np.testing.assert_array_equal(table.values["iso_class"][rows], nasbench201.values["iso_class"])

    zeros = Nasbench201Genotype(ops=("none",) * 6)
    without = [line for line in lines if line.split(",")[2] != lines[1].split(",")[2]]
    path.write_text("\n".join(without))
    table = tables.load(path)
    assert zeros in table
    missing = nasbench201.genotype(0)
    assert missing not in table
    with pytest.raises(LookupError, match="neither this cell nor an isomorphic one") as caught:
        table.look_up(missing, "params")
    assert str(caught.value).endswith(missing.to_text())
    with pytest.raises(LookupError):
        table.indices([zeros, missing])


def test_isomorphic_rows_give_the_first(tmp_path):
    # Three cells whose edge 1 -> 3 is another operation of a zero.
    cells = [
        Nasbench201Genotype(ops=("none", "none", "none", "nor_conv_3x3", op, "none"))
        for op in ("avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
    ]
    path = tmp_path / "t.csv"
    path.write_text(
        "arch_str,x\n" + "".join(f"{c.to_text()},{i}\n" for i, c in enumerate(cells[:2]))
    )
    table = tables.load(path)
    assert [table.look_up(cell, "x") for cell in cells] == [0, 1, 0]


# NAS-Bench-101


def test_nasbench101(nasbench101):
    assert nasbench101.benchmark == "nasbench101"
    assert len(nasbench101) == 30_001
    assert nasbench101.columns == (
        *("params", "train_time_108", "val_4", "val_12", "val_36", "val_108"),
        *("in_1shot1_s1", "in_1shot1_s2", "in_1shot1_s3"),
    )
    assert nasbench101.values["val_108"][0] == 93.0489  # 0.930489 in the file
    assert nasbench101.values["train_time_108"][0] == 1768.976
    cells = [nasbench101.genotype(row) for row in range(0, len(nasbench101), 10)]
    np.testing.assert_array_equal(nasbench101.indices(cells), np.arange(0, len(nasbench101), 10))


def relabelled(cell, generator):
    """The cell with its inner vertices in another order, as far as the matrix stays triangular."""
    size = len(cell.ops)
    order, left = [0], list(range(1, size - 1))
    while left:
        ready = [v for v in left if not any(cell.matrix[w][v] for w in left)]
        order.append(generator.choice(ready))
        left.remove(order[-1])
    order.append(size - 1)
    return Nasbench101Genotype(
        matrix=[[cell.matrix[i][j] for j in order] for i in order], ops=[cell.ops[i] for i in order]
    )


def with_a_dead_end(cell, generator):
    """The cell with one more vertex, which reads others and is read by none."""
    size, place = len(cell.ops), len(cell.ops) - 1
    matrix = [[*row[:place], generator.randint(0, 1), *row[place:]] for row in cell.matrix]
    matrix.insert(place, [0] * (size + 1))
    matrix[-1][place] = 0
    ops = [*cell.ops[:place], "maxpool3x3", *cell.ops[place:]]
    return Nasbench101Genotype(matrix=matrix, ops=ops)


def test_nasbench101_isomorphic_cells(nasbench101):
    generator = random.Random(0)
    others = 0
    for row in generator.sample(range(len(nasbench101)), 300):
        cell = nasbench101.genotype(row)
        same = relabelled(cell, generator)
        others += same != cell
        assert nasbench101.index(same) == row
        if len(cell.ops) < 7:
            assert nasbench101.index(with_a_dead_end(cell, generator)) == row
    assert others > 100


def test_nasbench101_unknown_cells(nasbench101):
    cut = Nasbench101Genotype(
        matrix=((0, 1, 0), (0, 0, 0), (0, 0, 0)), ops=(*SPEC.ops[::2], "output")
    )
    hashes = set(nasbench101.hashes)
    assert SPEC.module_hash() not in hashes
    for cell in (cut, SPEC):
        assert cell not in nasbench101
        with pytest.raises(LookupError, match="30001 cells of the nasbench101 table: ModelSpec"):
            nasbench101.index(cell)


# Both


def test_wrong_questions(nasbench201, nasbench101):
    cell201, cell101 = nasbench201.genotype(0), nasbench101.genotype(0)
    for table, wrong in ((nasbench201, cell101), (nasbench101, cell201), (nasbench201, DARTS)):
        for ask in (table.index, table.__contains__, lambda g: table.look_up(g, "params")):
            with pytest.raises(ValueError, match=f"holds {table.benchmark} genotypes, got a "):
                ask(wrong)
    with pytest.raises(ValueError, match=r"column must be one of index, iso_class, .* got 'acc'"):
        nasbench201.look_up(cell201, "acc")


@pytest.mark.parametrize("name", ["nasbench201_cifar10.csv", "nasbench101_30k.csv.gz"])
def test_speed(name, data_file):
    """0.2 and 0.7 s to load, 0.1 s for 15,625 look-ups on one core."""
    start = time.perf_counter()
    table = tables.load(data_file(name))
    assert time.perf_counter() - start < 5
    cells = [table.genotype(row) for row in range(15_625)]
    start = time.perf_counter()
    for cell in cells:
        table.look_up(cell, "params")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_write_csv(nasbench201, nasbench101, suffix, tmp_path):
    for table in (nasbench201, nasbench101):
        path = tmp_path / f"table{suffix}"
        tables.write_csv(table, path)
        assert path.read_bytes().startswith(b"\x1f\x8b") == (suffix == ".csv.gz")
        assert_equal(tables.load(path), table)


def test_write_csv_of_any_numbers(tmp_path):
    numbers = np.random.default_rng(0).uniform(0, 100, 1000) ** 4 / 1e6
    numbers[:4] = math.nan, 1e-12, 0, 100
    bits, ops = "0111000100010000", "input,{},{},output"
    inner = ["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"]
    cells = tuple(f"{bits} {ops.format(a, b)}" for a in inner for b in inner)
    values = {name: numbers[: len(cells)] for name in ("val_108", "train_time_108")}
    table = tables.Table("nasbench101", values, cells, tuple(map(str, range(len(cells)))))
    path = tmp_path / "table.csv"
    for start in range(0, 990, 9):
        part = {name: numbers[start : start + 9] for name in values}
        table = tables.Table("nasbench101", part, cells, table.hashes)
        tables.write_csv(table, path)
        assert_equal(tables.load(path), table)
    with pytest.raises(ValueError, match=r"path must end in .csv or .csv.gz, got .*table.txt"):
        tables.write_csv(table, tmp_path / "table.txt")
    assert sorted(tmp_path.iterdir()) == [path]


# Official files of NAS-Bench-201

official = pytest.mark.parametrize("name", WRITERS)


@official
def test_official_nasbench201(name, tmp_path):
    # Written in another order than that of the index; cell 1 was trained on CIFAR-10 only.
    weights = OrderedDict({"conv.weight": Tensor()}) if name.endswith(".pth") else None
    other, other_means = results(1, OTHER, datasets=("cifar10-valid", "cifar10"))
    cell, means = results(0, CELL, known=CELL_0, weights=weights)
    WRITERS[name](tmp_path / name, {1: other, 0: cell})
    table = tables.load(tmp_path / name)

    assert table.benchmark == "nasbench201"
    assert table.cells == (CELL, OTHER)
    assert table.columns == (
        *("index", "params", "flops"),
        *(f"{column}_{epochs}" for epochs in (200, 12) for column in COLUMNS),
    )
    for row, known in enumerate((means, other_means)):
        costs = {"index": row, "params": 129_306, "flops": 15_647_370}
        for column in table.columns:
            number = (known | costs).get(column, math.nan)
            got = table.look_up(table.genotype(row), column)
            assert got == pytest.approx(number, rel=1e-12, nan_ok=True), column
    assert np.isnan(table.values["c100_val_200"]).tolist() == [False, True]

    # As other sources have it.
    for column, number in (
        ("c10_test_200", 85.8633),
        ("c10valid_val_200", 81.9827),
        ("c10valid_val_12", 63.364),
    ):
        assert table.values[column][0] == pytest.approx(number, abs=1e-4)

    path = tmp_path / "compact.csv"
    tables.write_csv(table, path)
    assert_equal(tables.load(path), table)


def test_official_columns_without_numbers_and_params_that_disagree(tmp_path):
    path = tmp_path / "NATS.tar"
    params = {111: 0.5, 777: 0.7, 888: 0.3, 999: 0.7}
    write_tar(path, {0: results(0, CELL, datasets=("cifar10",), params=params)[0]})
    table = tables.load(path)
    assert table.columns == ("index", "params", "flops", "c10_test_200", "c10_test_12")
    assert table.values["params"].tolist() == [300_000]


@pytest.mark.parametrize("zipped", [False, True])
def test_pth_of_torch_itself(zipped, tmp_path):
    torch = pytest.importorskip("torch", reason="no PyTorch")
    weights = OrderedDict({"w": torch.nn.Parameter(torch.ones(2)), "n": torch.tensor(3)})
    by_epochs, means = results(0, CELL, weights=weights)
    path = tmp_path / "NAS-Bench-201-v1_1-096897.pth"
    torch.save(whole({0: by_epochs}), path, _use_new_zipfile_serialization=zipped)
    table = tables.load(path)
    assert table.values["params"].tolist() == [129_306]
    assert table.values["in16_val_200"][0] == pytest.approx(means["in16_val_200"], rel=1e-12)


@pytest.mark.parametrize("name", list(WRITERS)[:2])
def test_progress(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, {0: results(0, CELL)[0], 1: results(1, OTHER)[0]})
    calls = []
    tables.load(path, on_progress=lambda progress: calls.append((progress.done, progress.total)))
    assert len(calls) == 2
    assert all(0 < done <= total for done, total in calls)
    assert calls == sorted(calls)
    assert calls[-1][1] == (2 if path.is_dir() else path.stat().st_size)

    def stop(progress):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tables.load(path, on_progress=stop)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@official
def test_a_malicious_pickle_is_refused(name, tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Malicious(made)))
    assert made.exists()  # it works, so that an unpickler that ran it would be seen
    made.unlink()
    by_epochs, _ = results(0, CELL)
    by_epochs["12"]["all_results"]["cifar10", 777]["latency"] = Malicious(made)
    WRITERS[name](tmp_path / name, {0: by_epochs})
    refused(tmp_path / name, "asks for posix.system, which is refused")
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (Named("builtins", "eval"), "asks for builtins.eval, which is refused"),
        (Named("collections", "namedtuple"), "asks for collections.namedtuple"),
        (Named("numpy.core.multiarray", "_reconstruct"), "numpy.core.multiarray._reconstruct"),
        (Named("torch._utils", "os"), "asks for torch._utils.os"),
        (Named("torch.os", "systemStorage"), "asks for torch.os.systemStorage"),
        (Named("collections", "OrderedDict.__init__"), "collections.OrderedDict.__init__"),
        ([np.float64], "asks for numpy.float64"),
    ],
)
def test_other_globals_are_refused(content, part, tmp_path):
    write_tar(tmp_path / "NATS.tar", {7: content})
    refused(tmp_path / "NATS.tar", "architecture 7: ", part)


def test_a_scalar_is_a_number(tmp_path):
    class Objects(Pickler):
        def reducer_override(self, obj):
            if isinstance(obj, np.float64):
                return Named("numpy.core.multiarray", "scalar"), (np.dtype("O"), b"12345678")
            return super().reducer_override(obj)

    file = io.BytesIO()
    Objects(file, 4).dump(results(0, CELL)[0])
    path = tmp_path / "NATS"
    path.mkdir()
    (path / "000000.pickle.pbz2").write_bytes(bz2.compress(file.getvalue()))
    refused(path, "architecture 0: a numpy scalar or array must be of numbers, got the dtype '|O8'")


@pytest.mark.parametrize("name", list(WRITERS)[1:])
def test_cut_off_official_files(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](
        path, {index: results(index, cell)[0] for index, cell in enumerate((CELL, OTHER))}
    )
    content = path.read_bytes()
    end = len(content)
    if name.endswith("096897.pth"):  # it goes on behind the pickle, with the tensors' numbers
        end = content.rindex(b"evaluated_indexes")
    if name.endswith(".tar"):  # it goes on behind the last member, with zeros
        end = -(len(content.rstrip(b"\0")) // -512) * 512
    for length in (600, end // 4, end // 2, end * 3 // 4, end - 600):
        path.write_bytes(content[:length])
        refused(path)
    if name.endswith(".tar"):
        path.write_bytes(content[:end])
        refused(path, "cut off: a tar archive ends with zeros")


@official
def test_official_files_of_something_else(name, tmp_path):
    by_epochs, _ = results(0, "64:64:64:64:64")  # the other search space of NATS-Bench
    WRITERS[name](tmp_path / name, {0: by_epochs})
    refused(tmp_path / name, "architecture 0: not a NAS-Bench-201 arch_str: '64:64:64:64:64'")
    by_epochs, _ = results(1, CELL)
    del by_epochs["200"]["all_results"]
    path = tmp_path / f"1{name}"
    WRITERS[name](path, {0: by_epochs})
    refused(path, "KeyError: 'all_results'")
    path = tmp_path / f"2{name}"
    WRITERS[name](path, {0: results(0, CELL)[0], 1: results(0, CELL)[0]})
    refused(path, "architecture 1: holds the cell of architecture 0 again")


# Official files of NAS-Bench-101


def test_nasbench101_tfrecord(tmp_path):
    assert crc32c(b"123456789") == struct.pack("<I", 0xC78AB0E5)  # 0xE3069283 before the mask
    path = tmp_path / "nasbench_full.tfrecord"
    path.write_bytes(tfrecord(RECORDS))
    calls = []
    table = tables.load(
        path, on_progress=lambda progress: calls.append((progress.done, progress.total))
    )
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    assert table.benchmark == "nasbench101"
    assert len(table) == 2
    assert table.columns == (
        *("params", "val_12", "test_12", "train_time_12"),
        *("val_108", "test_108", "train_time_108"),
    )
    expected = {
        SPEC: (8_555_530, 70, 60, 11, 92, 83, 110),
        SMALL: (1000, *[math.nan] * 3, 50, 40, 10),
    }
    for cell, numbers in expected.items():
        got = [table.look_up(cell, column) for column in table.columns]
        assert got == pytest.approx(numbers, rel=1e-12, nan_ok=True)
    swapped = relabelled(SPEC, random.Random(0))
    assert swapped != SPEC
    assert table.index(swapped) == 0

    compact = tmp_path / "compact.csv.gz"
    tables.write_csv(table, compact)
    assert_equal(tables.load(compact), table)


@pytest.mark.parametrize("where", ["header", "record", "checksum"])
def test_cut_off_tfrecord(where, tmp_path):
    path = tmp_path / "nasbench_only108.tfrecord"
    content = tfrecord(RECORDS)
    last = len(content) - len(RECORDS[-1]) - 16
    end = {"header": last + 5, "record": last + 50, "checksum": len(content) - 1}[where]
    path.write_bytes(content[:end])
    refused(path, f"cut off, or damaged, at byte {last}")


def changed(position, value):
    fields = json.loads(RECORDS[0])
    fields[position] = value
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (RECORDS[0][:-1], "record 1: JSONDecodeError"),
        (changed(4, "AAA"), "record 1: Error: Incorrect padding"),
        (changed(4, ""), "record 1: not enough values"),
        (changed(4, base64.b64encode(b"\x12\x7f\x00").decode()), "the metrics are cut off"),
        (changed(4, base64.b64encode(b"\x80").decode()), "record 1: IndexError"),
        (
            changed(4, base64.b64encode(b"\x0d\0\0\0\0").decode()),
            "record 1: a field of wire type 5",
        ),
        (changed(1, "108"), "record 1: TypeError"),
        (json.dumps([1, 2]).encode(), "record 1: not enough values to unpack"),
        (record(SPEC, 108, 3.5, 0.8, 1.0), "cell 1: val_108 must be from 0 to 1, got 3.5"),
    ],
)
def test_damaged_tfrecord(content, part, tmp_path):
    path = tmp_path / "nasbench_only108.tfrecord"
    path.write_bytes(tfrecord([RECORDS[1], content]))
    refused(path, part)


def test_tfrecord_of_unknown_cells(tmp_path):
    path = tmp_path / "nasbench_only108.tfrecord"
    for position, value, part in (
        (2, "01", "cell 0: 4 ops take an adjacency of 16 bits, got '01'"),
        (3, "input,conv9x9,maxpool3x3,output", "cell 0: unknown op 'conv9x9'"),
    ):
        path.write_bytes(tfrecord([changed(position, value)]))
        refused(path, part)


# Compact files that are wrong

HEAD_101 = "hash,vertices,adjacency,ops,params,val_108\n"
ROW_101 = 'abc,4,0110000100010000,"input,conv3x3-bn-relu,maxpool3x3,output",5,0.9\n'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "begins with '', which is none of a compact csv"),
        ("a,b\n1,2\n", "begins with 'a,b', which is none of a compact csv"),
        ("arch_str,x\n", "holds no cell"),
        ("hash,adjacency,ops\n", "holds no cell"),
        ("arch_str,x,x\n", "the header names a column twice: arch_str,x,x"),
        (f"arch_str,x\n{CELL},1\n{OTHER}\n", "line 3 must have 2 values as the header has, got 1"),
        (f"arch_str,x\n{CELL},1\n\n{OTHER},2\n", "line 3 must have 2 values"),
        (f"arch_str,x\n{CELL},1\n{OTHER},1.2.3\n", "line 3: x must be a number, got '1.2.3'"),
        (f"arch_str,x\n{CELL},1\n{OTHER},1\n{CELL},2\n", "line 4: holds the cell of line 2 again"),
        (f"arch_str,x\n{CELL},1\n{OTHER}|,1\n", "line 3: not a NAS-Bench-201 arch_str"),
        (f"arch_str,c10_test_200\n{CELL},93\n{OTHER},130\n", "line 3: c10_test_200 must be from 0"),
        (f"arch_str,c10_test_200\n{CELL},-inf\n", "line 2: c10_test_200 must be from 0 to 100"),
        (f'arch_str,x\n"{CELL}"y,1\n', "Error: ',' expected after '\"'"),
        (HEAD_101 + ROW_101.replace("0.9", "x"), "line 2: val_108 must be a number, got 'x'"),
        (
            HEAD_101 + ROW_101.replace("0.9", "93.1"),
            "line 2: val_108 must be from 0 to 1, got 93.1",
        ),
        (HEAD_101 + ROW_101.replace("0110", "0112"), "line 2: 4 ops take an adjacency of 16 bits"),
        (HEAD_101 + ROW_101.replace("0110", "1110"), "line 2: the matrix holds 0 and 1, and no 1"),
        (HEAD_101 + ROW_101.replace("conv3", "conv5"), "line 2: unknown op 'conv5x3-bn-relu'"),
        (HEAD_101 + 2 * ROW_101, "line 3: holds the cell of line 2 again"),
    ],
)
def test_wrong_csv(text, part, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    refused(path, part)


MICRO = ("64-41414-1_23_012", "64-41414-3_12_231", "64-41414-0_00_000")


def test_transnas101(nasbench201, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(
        "arch_str,class_scene_valid_top1,class_object_test_loss\n"
        f"{MICRO[0]},54.9,-2.5\n{MICRO[1]},51.25,\n"
    )
    table = tables.load(path)
    assert (table.benchmark, table.cells) == ("transnas101", MICRO[:2])
    cells = [*map(Transnas101Genotype.from_text, MICRO)]
    assert table.look_up(cells[1], "class_scene_valid_top1") == 51.25
    assert math.isnan(table.look_up(cells[1], "class_object_test_loss"))
    assert [cell in table for cell in cells] == [True, True, False]
    assert [table.genotype(row) for row in range(2)] == cells[:2]
    tables.write_csv(table, tmp_path / "again.csv.gz")
    assert_equal(tables.load(tmp_path / "again.csv.gz"), table)
    with pytest.raises(ValueError, match="holds nasbench201 genotypes, got a Transnas101Genotype"):
        nasbench201.find(cells[0])
    with pytest.raises(ValueError, match="of one benchmark, got"):
        tables.merge([table, nasbench201])
    path.write_text(f"arch_str,x\n{MICRO[0]},1\n{CELL},2\n")
    refused(path, "line 3: not a TransNAS-Bench-101 micro cell")


def test_missing_numbers(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"\ufeffx,arch_str,y\n,{CELL},1\nnan,{OTHER},2")
    table = tables.load(path)
    assert table.columns == ("x", "y")
    assert np.isnan(table.values["x"]).all()
    assert table.values["y"].tolist() == [1, 2]
    assert Nasbench201Genotype(ops=NASBENCH201_OPS[:1] * 6) not in table


def test_other_files(tmp_path):
    refused(tmp_path / "absent.csv", "there is no file", "accepted are a compact csv or csv.gz")
    refused(tmp_path, "must hold files such as 000000.pickle.pbz2, got none; accepted are")
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4)
    refused(path, "which is none of a compact csv")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"")
    refused(path, "There is no item named 'data.pkl' in the archive")
    path.write_bytes(bz2.compress(pickled({"meta_archs": []}, 4)))
    refused(path, "must hold a dictionary with arch2infos")
    path.write_bytes(gzip.compress(b"arch_str,x\n" + CELL.encode() + b",1\n")[:-12])
    refused(path, "EOFError")


# Several tables as one


def written(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def two_files(tmp_path):
    first = [
        "arch_str,params,c10_test_200,c10_test_12",
        f"{CELL},1,90,50",
        f"{OTHER},2,91,",
    ]
    third = CELL.replace("avg_pool", "nor_conv")
    second = ["arch_str,c10_test_200,c10_test_12", f"{third},80,40", f"{CELL},93,"]
    return written(tmp_path / "first.csv", first), written(tmp_path / "second.csv", second), third


def test_of_two_tables_the_later_one_stands(two_files):
    """Where both have a number; else the one that has it."""
    first, second, third = two_files
    table, overlaps = tables.load_all([first, second])
    assert table.cells == (CELL, OTHER, third)
    assert table.columns == ("params", "c10_test_200", "c10_test_12")
    np.testing.assert_array_equal(table.column("c10_test_200"), [93, 91, 80])
    np.testing.assert_array_equal(table.column("c10_test_12"), [50, np.nan, 40])
    np.testing.assert_array_equal(table.column("params"), [1, 2, np.nan])
    assert overlaps == {"c10_test_200": tables.Overlap(1, 3.0, 3.0)}
    other_way, _ = tables.load_all([second, first])
    assert other_way.look_up(Nasbench201Genotype.from_text(CELL), "c10_test_200") == 90


def test_one_table_is_itself(two_files):
    table, overlaps = tables.load_all(two_files[:1])
    assert_equal(table, tables.load(two_files[0]))
    assert overlaps == {}


def test_tables_that_are_no_one(two_files, data_file):
    with pytest.raises(ValueError, match="must be of one benchmark, got nasbench"):
        tables.load_all([two_files[0], data_file("nasbench1shot1_2.csv.gz")])
    with pytest.raises(ValueError, match="there must be a table; accepted are"):
        tables.load_all([])


def test_the_tables_of_nasbench1shot1(nasbench101, data_file):
    """Of 236 cells in both the mean of three trainings stands; of the others each its own."""
    means = tables.load(data_file("nasbench1shot1_2.csv.gz"))
    table, overlaps = tables.load_all(
        [data_file("nasbench101_30k.csv.gz"), data_file("nasbench1shot1_2.csv.gz")]
    )
    assert len(table) == len(nasbench101) + len(means) - 236
    assert overlaps["val_108"].cells == 236
    assert round(overlaps["val_108"].median, 2) == 0.30
    for row in (0, 1000, len(means) - 1):
        cell = means.genotype(row)
        assert table.look_up(cell, "test_108") == means.look_up(cell, "test_108")
        assert table.look_up(cell, "val_108") == means.look_up(cell, "val_108")
    only = next(each for each in map(nasbench101.genotype, range(100)) if each not in means)
    assert table.look_up(only, "val_108") == nasbench101.look_up(only, "val_108")
    assert np.isnan(table.look_up(only, "test_108"))
