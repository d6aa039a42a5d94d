"""Whatever is in a file: it is read, or refused by an error that the command says in one line.

By default a few hundred inputs, always the same ones. `pytest -m nightly tests/fuzz` has
`NASI_FUZZ_EXAMPLES` random ones (100,000 by default), and prints how many there were.
"""

import base64
import bz2
import gzip
import io
import json
import os
import re
import resource
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cifar
import jax
import numpy as np
import official
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spoilt
from hypothesis import strategies as st
from PIL import Image

from nasi_jax import config, data, runs, tables
from nasi_jax.cells import genotype_to_dict, parse_genotype, search_space
from nasi_jax.cells.spaces import SEARCH_SPACES, genotype_from_dict
from nasi_jax.devices import mesh

FEW, MANY = 20, int(os.environ.get("NASI_FUZZ_EXAMPLES", 100_000))
SECONDS = 20.0
"""That reading one input may take: far more than it does, on a machine that others use too."""

HARMFUL = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "os.remove"}
HARMFUL |= {"pickle.find_class", "socket.connect", "shutil.rmtree", "ctypes.dlopen"}
"""What Python tells of that no reader does; `pickle.find_class` of names that are not ours."""


MOST_BYTES = 2**30
"""Of memory that reading one input may take, whatever its header claims or it unpacks to."""
STOP_BYTES = 6 * 2**30
"""What the process may take beyond what it has, so that a fault does not stop the machine."""


class Watch:
    """Notes what Python's audit events tell of while a file is read."""

    def __init__(self):
        self.seen = None
        sys.addaudithook(self._note)  # for as long as the process lives

    def _note(self, event, _):
        if self.seen is not None and event in HARMFUL:
            self.seen.append(event)


WATCH = Watch()


def status(name: str) -> int:
    """An entry of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)[1])


def check(read: Callable[[], object]) -> None:
    """Reads: a value, or one of the errors that the command turns into a line; nothing executed."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts anew
    WATCH.seen, resident, begun = [], status("VmRSS"), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as of Pillow, which the command shows as lines
            read()
    except (ValueError, OSError):
        pass
    finally:
        seen, WATCH.seen = WATCH.seen, None
    assert not seen
    assert time.perf_counter() - begun < SECONDS
    assert status("VmHWM") - resident < MOST_BYTES


# Contents of files


def csv_rows(*columns: tuple[str, ...]) -> bytes:
    return "".join(",".join(row) + "\n" for row in columns).encode()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def image(form: str, mode: str = "RGB", side: int = 9) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def parquet(labels: Any = (0, 1, 2, 1), names: Any = ("a", "b", "c"), **options: Any) -> bytes:
    png = image("png")
    table = pa.table({"img": [{"bytes": png, "path": "x.png"}] * len(labels), "label": labels})
    features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    described = json.dumps({"info": {"features": features}})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), file, **options)
    return file.getvalue()


CELLS_201 = ("arch_str,c10_test_200,params", f"{official.CELL},91.5,1000", f"{official.OTHER},10,")
BITS = "".join(str(bit) for row in official.SPEC.matrix for bit in row)
CELLS_101 = (
    "hash,adjacency,ops,val_108,params",
    f'a,{BITS},"{",".join(official.SPEC.ops)}",0.93,1000',
    'b,0100,"input,output",,5',
)
CELLS_TRANSNAS = ("arch_str,test_1", "64-41414-1_23_012,3", "64-41414-0_00_000,4")
CSV = tuple("\n".join(lines).encode() for lines in (CELLS_201, CELLS_101, CELLS_TRANSNAS))

_KNOWN = official.results(0, official.CELL, datasets=("cifar10-valid", "cifar10"))[0]
PICKLED_CELL = official.pickled(_KNOWN, 4)
PICKLED_TABLE = official.pickled(official.whole({0: _KNOWN}), 2)
PBZ2_TABLE = official.pickled(official.whole({0: _KNOWN}, ("12", "200")), 4)


def legacy_pth(content: bytes) -> bytes:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(official.pickled(part, 2) for part in parts) + content


def zip_pth(content: bytes) -> bytes:
    return zipped({"archive/data.pkl": content, "archive/version": b"3\n"})


def nats_tar(content: bytes) -> bytes:
    return tar({"NATS/000000.pickle.pbz2": bz2.compress(content)})


def of_records(*records: bytes) -> bytes:
    """A TFRecord file without its checksums, which take long and are not looked at."""
    return b"".join(struct.pack("<QI", len(each), 0) + each + bytes(4) for each in records)


@st.composite
def tfrecords(draw) -> bytes:
    """Records whose JSON or whose metrics are others than they should be."""
    fields = json.loads(official.RECORDS[0])
    if draw(st.booleans()):
        fields = draw(spoilt.changed(fields))
    else:
        metrics = draw(spoilt.spoilt([base64.b64decode(fields[4])]))
        fields[4] = base64.b64encode(metrics).decode()
    return of_records(official.RECORDS[1], json.dumps(fields).encode())


CIFAR = {form: cifar.contents(form, cifar.examples(form, train=10, test=2)) for form in cifar.FORMS}


@st.composite
def cifar_archives(draw, form) -> bytes:
    """With one of the files replaced by what it might be."""
    members = dict(CIFAR[form])
    name = draw(st.sampled_from(sorted(members)))
    contents = spoilt.spoilt([members[name], *members.values()])
    members[name] = draw(contents | spoilt.pickles() if "python" in form else contents)
    return tar(members)


@st.composite
def npz_files(draw) -> bytes:
    """With arrays of any type and shape, or with headers that claim others."""
    members = {}
    for name in ("x_train", "y_train"):
        shape = draw(st.lists(st.integers(0, 4), max_size=5))
        kinds = ("u1", "f4", "f2", "f8", "i8", "u8", "?", "c8", "U3", "M8[s]", "O", "f4,i4")
        content = npy(np.zeros(shape, draw(st.sampled_from(kinds))))
        if draw(st.booleans()):
            content = draw(spoilt.spoilt([content]))
        members[f"{name}.npy"] = content
    return zipped(members)


def png(width: int, height: int, depth: int, color: int, *, interlace: int = 0) -> bytes:
    """A PNG file of a few bytes, whose header claims any size and kind."""
    fields = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    chunks = {b"IHDR": fields, b"IDAT": zlib.compress(bytes(250)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
        for kind, each in chunks.items()
    )


SIDES = st.sampled_from((0, 1, 3, 9, 10**5, 2**31 - 1, 2**32 - 1))
KINDS_OF_PNG = st.sampled_from((0, 1, 2, 3, 4, 6, 8, 16, 255))
PNGS = st.builds(png, SIDES, SIDES, KINDS_OF_PNG, KINDS_OF_PNG, interlace=st.integers(0, 2))


def wrapped_in_parquet(content: bytes) -> bytes:
    table = pa.table({"image": [{"bytes": content, "path": ""}] * 2, "label": [0, 1]})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@st.composite
def parquet_files(draw) -> bytes:
    """With labels and descriptions of any kind."""
    numbers = draw(st.lists(st.sampled_from(spoilt.WHOLE_NUMBERS), max_size=5))
    labels = draw(st.sampled_from((numbers, [*numbers, None], ["a"], [1.5], [True])))
    return parquet(labels, draw(spoilt.JSON))


IMAGES = (
    *(image(form) for form in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")),
    *(image("png", mode) for mode in ("P", "L", "1", "LA", "RGBA", "I;16")),
    *(image("jpeg", "CMYK"), image("tiff", "F"), image("gif", "P"), image("ppm", "L")),
)

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"(marker) (w) file closefile\nshowpage\n%%EOF\n"
)
"""An image that is a program: Pillow has Ghostscript run it, where that is installed."""


# Texts

GENOTYPES = [
    search_space(name).sample(jax.random.key(number)) for number, name in enumerate(SEARCH_SPACES)
]
GENOTYPE_TEXTS = tuple(each.to_text().encode() for each in GENOTYPES)
GENOTYPE_FIELDS = tuple(genotype_to_dict(each) for each in GENOTYPES)
GENOTYPE_JSON = tuple(json.dumps(each).encode() for each in GENOTYPE_FIELDS)
TOKENS = (
    *("Genotype(", "ModelSpec(", "normal=", "matrix=", "ops=", "range(2, 6)", "range(0, 10**9)"),
    *("[", "]", "(", ")", "{", "}", ",", "'", '"', "1", "-", "**", "lambda: 0"),
    *(
        "|",
        "+",
        "~0",
        "none",
        "nor_conv_3x3",
        "64-41414-",
        "1_23_012",
        "\\",
        "\n",
        "f'{1}'",
        "9" * 4400,
    ),
    *("input", "output", "conv3x3-bn-relu", "*", "#", "'''", "b''", "1j", "...", "\0", "\ud800"),
)
"""What texts of genotypes are made of, and what they might be thought to be."""


def parsed(text: bytes) -> None:
    genotype = parse_genotype(text.decode("utf-8", "surrogateescape"))
    assert parse_genotype(genotype.to_text()) == genotype
    assert genotype_from_dict(genotype_to_dict(genotype)) == genotype


def from_json(fields: Any) -> None:
    genotype = genotype_from_dict(fields)
    assert genotype_from_dict(genotype_to_dict(genotype)) == genotype


KINDS = (
    config.SearchConfig,
    config.ScoreConfig,
    config.SelectConfig,
    config.RankConfig,
    runs.train.TrainConfig,
)
REQUIRED = {config.RankConfig: {"table": ("t",), "column": "c"}}
CONFIGS = {kind: config.to_dict(kind(**REQUIRED.get(kind, {}))) for kind in KINDS}


def configured(pair: tuple[type, Any]) -> None:
    kind, fields = pair
    found = config.from_dict(fields, kind)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(found))), kind) == found


# What reads


class Reader(NamedTuple):
    """What reads a kind of input.

    Attributes:
      inputs: the strategy of its inputs.
      read: reads one; `(input, path of a file or folder that may be written)`.
      valid: inputs that it reads.
      found: inputs by which this test has found a fault.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    valid: tuple[Any, ...] = ()
    found: tuple[Any, ...] = ()


def of_file(load: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    """What reads a file of a name by its content."""

    def read(content, folder):
        path = folder / name
        path.write_bytes(content)
        return load(path)

    return read


def of_table(name: str) -> Callable[[bytes, Path], object]:
    def load(path):
        table = tables.load(path)
        assert len(table) and [table.genotype(row) for row in range(len(table))]
        assert all(len(column) == len(table) for column in table.values.values())

    return of_file(load, name)


def opened(path: Path | str) -> None:
    for split in ("train", "test"):
        dataset = data.load(str(path), split=split, image_size=8)
        images, labels = dataset.images(np.arange(min(3, dataset.num_examples)))
        assert images.shape[1:] == (8, 8, 3) and np.isfinite(images).all()
        assert labels.min() >= 0 and labels.max() < dataset.num_classes
        assert np.isfinite(dataset.mean).all() and np.isfinite(dataset.std).all()


def in_folder(content: bytes, folder: Path) -> None:
    for index, part in enumerate((content, image("png"))):
        path = folder / "images" / f"class{index}" / "a.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part)
    opened(folder / "images")


def member_of_nats(content: bytes, folder: Path) -> None:
    (folder / "nats").mkdir(exist_ok=True)
    (folder / "nats" / "000000.pickle.pbz2").write_bytes(content)
    tables.load(folder / "nats")


def decoded(content: bytes, _: Path) -> None:
    pixels = data.decode(io.BytesIO(content), "an image")
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)


def known_rows(content: bytes, folder: Path) -> None:
    def read(path):
        return runs.score.known_rows(path, SCORE_COLUMNS, SCORE_COLUMNS[2:3])

    of_file(read, "scores.csv")(content, folder)


def listed(content: bytes, folder: Path) -> None:
    path = folder / "genotypes.txt"
    path.write_bytes(content)
    runs.score.genotypes_of(config.ScoreConfig(genotypes=str(path)))


def resumed(files: dict[str, bytes], folder: Path) -> None:
    """Every reader of a run directory, on one that holds these files."""
    directory = folder / "run"
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    readers = (
        runs.resume.verb_of,
        runs.search.saved,
        runs.select.saved,
        runs.train.saved,
        lambda path: runs.score.saved(runs.rank.run_directory(path), config.RankConfig),
        lambda path: runs.score.saved(runs.compare.run_directory(path), config.ScoreConfig),
        lambda path: runs.search.read_genotype(str(path / "result.json")),
        lambda path: runs.report.report([path], folder / "report.html", overwrite=True),
    )
    for read in readers:
        check(lambda read=read: read(directory))


SCORE_COLUMNS = ("seed", "genotype", "flops", "seconds")
SCORES = csv_rows(SCORE_COLUMNS, ("0", official.CELL.replace(",", ""), "5", "0.1"))
LISTED = f"{official.CELL}\n\n{official.OTHER}\n".encode()
MESHES = (b"data=1,sample=1", b"sample=1", b"data=2")


def of_pickle(content, wrapped, read):
    """A reader of pickles in another form, which are spoilt before and after they are wrapped."""
    before = spoilt.spoilt([content]) | spoilt.pickles()
    inputs = before.map(wrapped) | spoilt.spoilt([wrapped(content)])
    return Reader(inputs, read, (wrapped(content),))


FILES = {
    "table csv": Reader(spoilt.spoilt(CSV), of_table("t.csv"), CSV),
    "table csv.gz": Reader(
        spoilt.spoilt(CSV).map(gzip.compress) | spoilt.spoilt([gzip.compress(CSV[0])]),
        of_table("t.csv.gz"),
        (gzip.compress(CSV[1]),),
    ),
    "table tar": of_pickle(PICKLED_CELL, nats_tar, of_table("t.tar")),
    "table folder": of_pickle(PICKLED_CELL, bz2.compress, member_of_nats),
    "table pbz2": of_pickle(PBZ2_TABLE, bz2.compress, of_table("t.pbz2")),
    "table pth": of_pickle(PICKLED_TABLE, legacy_pth, of_table("t.pth")),
    "table zip pth": of_pickle(PICKLED_TABLE, zip_pth, of_table("t.pth")),
    "table tfrecord": Reader(
        tfrecords() | spoilt.spoilt([of_records(*official.RECORDS)]),
        of_table("t.tfrecord"),
        (official.tfrecord(official.RECORDS),),
    ),
    **{
        form: Reader(
            cifar_archives(form)
            | spoilt.spoilt([tar(CIFAR[form]), gzip.compress(tar(CIFAR[form]), 1)]),
            of_file(opened, "a.tar"),
            (tar(CIFAR[form]),),
        )
        for form in cifar.FORMS
    },
    "npz": Reader(
        npz_files() | npz_files().flatmap(lambda each: spoilt.spoilt([each])),
        of_file(opened, "a.npz"),
    ),
    "parquet": Reader(
        parquet_files() | spoilt.spoilt([parquet(), parquet(compression="gzip", row_group_size=2)]),
        of_file(lambda path: data.load(str(path), image_size=8).images(np.arange(2)), "a.parquet"),
        (parquet(),),
    ),
    "images in parquet": Reader(
        spoilt.spoilt(IMAGES).map(wrapped_in_parquet),
        of_file(lambda path: data.load(str(path), image_size=8).images(np.arange(2)), "a.parquet"),
    ),
    "folder": Reader(spoilt.spoilt(IMAGES[:3]), in_folder),
    "image": Reader(spoilt.spoilt((*IMAGES, EPS)) | PNGS, decoded, IMAGES[:11], (EPS,)),
    "genotype": Reader(
        spoilt.spoilt((*GENOTYPE_TEXTS, *GENOTYPE_JSON))
        | st.lists(st.sampled_from(TOKENS), max_size=12).map(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
        ),
        lambda text, _: parsed(text),
        (*GENOTYPE_TEXTS, *GENOTYPE_JSON),
    ),
    "genotype in JSON": Reader(
        st.sampled_from(GENOTYPE_FIELDS).flatmap(spoilt.changed) | spoilt.JSON,
        lambda fields, _: from_json(fields),
        GENOTYPE_FIELDS,
    ),
    "genotype in a file": Reader(
        spoilt.spoilt((*GENOTYPE_TEXTS, *GENOTYPE_JSON)),
        of_file(lambda path: runs.search.read_genotype(str(path)), "genotype"),
        (*GENOTYPE_TEXTS, *GENOTYPE_JSON),
    ),
    "genotypes": Reader(spoilt.spoilt([LISTED]), listed, (LISTED,)),
    "mesh": Reader(
        spoilt.spoilt(MESHES), lambda text, _: mesh.parse(text.decode("latin1")), MESHES[:2]
    ),
    "configuration": Reader(
        st.sampled_from(KINDS).flatmap(
            lambda kind: st.tuples(st.just(kind), spoilt.changed(CONFIGS[kind]) | spoilt.JSON)
        ),
        lambda pair, _: configured(pair),
        tuple(CONFIGS.items()),
    ),
    "scores": Reader(spoilt.spoilt([SCORES]), known_rows, (SCORES,)),
}


# What is small and claims, or unpacks to, far more

MEGABYTE = bytes(2**20)
MANY_MEGABYTES = 257
"""More than 2^28 bytes, which is what small files may unpack to."""


def zeros(pack: Callable[[bytes], bytes]) -> bytes:
    """Zeros packed, again and again."""
    return pack(MEGABYTE) * MANY_MEGABYTES


def deflated(name: str, head: bytes) -> bytes:
    """A zip archive of one file that ends in zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as to:
        to.write(head)
        for _ in range(MANY_MEGABYTES):
            to.write(MEGABYTE)
    return file.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    """That of an npy file."""
    file = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, fields)
    return file.getvalue()


def tar_of_zeros(name: str) -> bytes:
    """A tar.gz of one file of zeros."""
    info = tarfile.TarInfo(name)
    info.size = 2**32
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + zeros(gzip.compress)


def sparse_tar(name: str) -> bytes:
    """A tar archive whose one file is a hole of 64 GiB, which takes no place in it."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": f"0,0,{2**36},0",
        "GNU.sparse.size": str(2**36),
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return file.getvalue()


def equal_rows(number: int) -> bytes:
    """A parquet file of so many equal rows, which takes the place of one."""
    column = pa.StructArray.from_arrays([pa.repeat(b"x", number)], ["bytes"])
    table = pa.table({"img": column, "label": pa.repeat(0, number)})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=number)
    return file.getvalue()


BYTES_OF_8 = b"\x80\x04\x8e" + struct.pack("<Q", 2**32)
"""A pickle of 4 GiB of bytes, without them."""
FRAME = b"\x80\x04\x95" + struct.pack("<Q", 7)
"""What begins a pickle of 7 bytes that are in memory when they are read."""
FAR = struct.pack("<I", 2**30)
"""A place in the memo of a pickle, which is an array of as many to CPython."""
CLAIMED = zipped({"x_train.npy": header((10**12, 8, 8)), "y_train.npy": header((10**12,))})
CLASSES = zipped(
    {
        "x_train.npy": npy(np.zeros((2, 8, 8), np.uint8)),
        "y_train.npy": npy(np.array([0, 2**31 - 2])),
    }
)

BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "csv.gz": ("table csv.gz", lambda: zeros(gzip.compress), "unpacks to more"),
    "cell": (
        "table folder",
        lambda: bz2.compress(BYTES_OF_8) + zeros(bz2.compress),
        "unpacks to more",
    ),
    "zip": (
        "table zip pth",
        lambda: deflated("archive/data.pkl", BYTES_OF_8),
        "unpacks to more",
    ),
    "bytes of a pickle": (
        "table pth",
        lambda: legacy_pth(BYTES_OF_8[:3] + struct.pack("<Q", 2**60)),
        "MemoryError",
    ),
    "memo": ("table pth", lambda: legacy_pth(b"\x80\x02]r" + FAR + b"."), "place in its memo"),
    "memo by a line": ("table pth", lambda: legacy_pth(b"]p+1_073_741_824\n."), "in its memo"),
    "memo in a frame": ("table pth", lambda: legacy_pth(FRAME + b"]r" + FAR + b"."), "in its memo"),
    "hole for a table": (
        "table tar",
        lambda: sparse_tar("000000.pickle.pbz2"),
        "unpacks to more",
    ),
    "record of 2^60 bytes": (
        "table tfrecord",
        lambda: struct.pack("<QI", 2**60, 0) + b'["a", 1]',
        "cut off, or damaged",
    ),
    "cifar": ("cifar-10-binary", lambda: tar_of_zeros("data_batch_1.bin"), "unpacks to more"),
    "hole for cifar": ("cifar-10-python", lambda: sparse_tar("data_batch_1"), "unpacks to more"),
    "npz": ("npz", lambda: deflated("x_train.npy", header((2**20, 64, 64))), "unpack to more"),
    "rows of an npz": ("npz", lambda: CLAIMED, "must hold x_train"),
    "classes of an npz": ("npz", lambda: CLASSES, "below 1,000,000"),
    "classes of a parquet file": ("parquet", lambda: parquet([0, 10**12], ()), "below 1,000,000"),
    "rows of a parquet file": ("parquet", lambda: equal_rows(10**6), "has 1,000,000 rows in"),
    "pixels": ("image", lambda: png(10**5, 10**5, 8, 2), "exceeds limit"),
}
"""What is a bomb to which reader, and what is said of it."""


@pytest.fixture(scope="module", autouse=True)
def limited():
    """No fault takes all of the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + STOP_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", FILES)
def test_what_is_valid_is_read(name, folder):
    for value in FILES[name].valid:
        FILES[name].read(value, folder)


@pytest.mark.parametrize("name", FILES)
def test_what_is_spoilt_is_read_or_refused(name, folder):
    reader = FILES[name]
    spoilt.inputs(
        reader.inputs,
        lambda value: check(lambda: reader.read(value, folder)),
        FEW,
        found=reader.found,
    )


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_fill_the_memory_is_refused(name, folder):
    reader, content, words = BOMBS[name]
    bomb = content()
    assert len(bomb) < 10**6

    def refused():
        with pytest.raises(ValueError, match=words):
            FILES[reader].read(bomb, folder)

    check(refused)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
def test_what_is_spoilt_at_random_is_read_or_refused(name, folder):
    reader = FILES[name]
    number = -(-MANY // len(FILES))
    begun = time.perf_counter()
    count = spoilt.inputs(
        reader.inputs,
        lambda value: check(lambda: reader.read(value, folder)),
        number,
        random=True,
    )
    print(f"{name}: {count} inputs in {time.perf_counter() - begun:.0f} s")
    assert count >= number
