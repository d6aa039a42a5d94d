"""What the commands compute, kept: searches, scores and a training of seeded, small settings.

Command:   python tests/oracle.py [NAME ...]
Time:      five minutes on two CPU cores
Expected:  tests/oracle.json, made anew; without names, all of it

Each case is a line of the command, run as a user would. Of what it writes are kept: of a search
alpha, the selected genotype and a row for each step, of the scores a row for each cell, of a
training a row for each epoch. Make it anew only where results are meant to change, and say why in
the commit.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import sys
import tempfile
import zlib
from importlib import metadata
from pathlib import Path

if __name__ == "__main__":  # as tests/conftest.py does for tests
    from xla_flags import known_flags

    os.environ["XLA_FLAGS"] = known_flags()
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["JAX_PLATFORMS"] = "cpu"

import compiled

from nasi_jax.cli import main

FILE = Path(__file__).with_name("oracle.json")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

_SEARCH = "--steps 10 --batch-size 4 --image-size 8 --init-channels 4 --seed 7 --out OUT"
_SCORE = (
    "--num-archs 10 --norm frozen --batch-size 4 --image-size 8 --init-channels 4 --num-cells 1 "
    "--seed 7 --out OUT/scores.csv"
)
_CELL = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
CASES = {
    "search/darts": f"search --space darts --num-cells 3 {_SEARCH}",
    "search/nasbench201": f"search --space nasbench201 {_SEARCH}",
    "search/nasbench1shot1-1": f"search --space nasbench1shot1-1 --num-cells 1 {_SEARCH}",
    # Soft: one of its hard samples of so few pixels is 5e-5 apart in jax 0.10.2 and 0.12.0.
    "search/nasbench1shot1-2": "search --space nasbench1shot1-2 --num-cells 1 --relaxation soft "
    f"{_SEARCH}",
    "search/nasbench1shot1-3": f"search --space nasbench1shot1-3 --num-cells 1 {_SEARCH}",
    # Its images end as one pixel: of four of them statistics round apart in every jax.
    "search/transnas101": f"search --space transnas101 {_SEARCH} --image-size 32 --batch-size 16",
    "score": "score --space nasbench201 --proxies batch_gradient per_example_gradient "
    "random_cotangent ntk_trace num_params flops grad_norm snip synflow grasp fisher jacov naswot "
    f"zico condition_number linear_regions hnas {_SCORE}",
    # Not lswag and progressivity, which cancel: 3e-4 and 3e-5 apart in jax 0.10.2 and 0.12.0.
    "score/features": "score --space nasbench201 --proxies expressivity trainability vkdnw "
    "vkdnw_fisher meco near swap zen epsinas gradsign participation_ratio intrain apd "
    f"{_SCORE} --image-size 16 --batch-size 8",
    "train": f"train '{_CELL}' --recipe quick --data digits --epochs 1 --batch-size 64 --crop none "
    "--init-channels 4 --num-cells 1 --image-size 8 --seed 7 --out OUT",
}


def machine() -> dict[str, str]:
    """Where results are the same bit for bit: releases, flags of XLA, processor and cores."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    flags = os.environ.get("XLA_FLAGS", "")
    return {**versions, "XLA_FLAGS": flags, "cores": str(os.cpu_count()), **_processor()}


def _processor() -> dict[str, str]:
    """The processor's name, and a checksum of the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"processor": platform.processor(), "instructions": ""}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    instructions = zlib.crc32(found.get("flags", "").encode())
    return {"processor": found.get("model name", ""), "instructions": f"{instructions:08x}"}


def run(name: str, folder: Path) -> list[dict[str, object]]:
    """Runs a case in a folder: its rows, in the order in which they were computed."""
    with compiled.quick_compilation():
        main(shlex.split(CASES[name].replace("OUT", str(folder / "out"))))
    folder /= "out"
    verb = name.partition("/")[0]
    if verb == "score":
        return _rows(folder / "scores.csv")
    if verb == "train":
        return _rows(folder / "metrics.csv")
    result = json.loads((folder / "result.json").read_text())
    return [
        *_rows(folder / "history.csv"),
        {"genotype": result["text"], "alpha": result["alpha"]},
    ]


def _rows(path: Path) -> list[dict[str, object]]:
    """The rows of a csv file, less what a clock says."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    return [
        {key: _number(value) for key, value in row.items() if "second" not in key} for row in rows
    ]


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    names = sys.argv[1:] or list(CASES)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder, compiled.kept(folder):
            rows = run(name, Path(folder))
        kept[name] = {"command": CASES[name], "machine": machine(), "rows": rows}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")
