"""Breaks the package in one place after another, and looks whether the tests notice.

    python tests/mutations.py [--only NAME ...]

Each mutation of `mutations.toml` is made in a copy of the checkout, where its test then has to
fail: it is killed. A mutation that survives is a test that is missing. The tests are first run on
the copy as it is, and have to pass there. Prints a table; the status is 1 if a mutation survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
MUTATIONS = tomllib.loads((ROOT / "tests/mutations.toml").read_text())

OUTCOMES = {0: "survived", 1: "killed"}
"""By pytest's status: all passed, some failed. After any other the test did not run."""


def mutated(root, mutation):
    """The text of the file with the mutation, whose text has to stand there once."""
    source = (root / mutation["file"]).read_text()
    count = source.count(mutation["text"])
    if count != 1:
        raise ValueError(f"{mutation['file']} has {mutation['text']!r} {count} times, not once")
    return source.replace(mutation["text"], mutation["replacement"])


def tested(root, tests):
    """Pytest's status of tests of a copy, what it said, and its seconds."""
    # Compiled Python is told from its source by size and second, which a mutation may keep.
    settings = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests],
        cwd=root,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - begin


def tried(root, mutation):
    """Tests a copy with the mutation, and restores it."""
    path = root / mutation["file"]
    before, after = path.read_text(), mutated(root, mutation)
    path.write_text(after)
    try:
        return tested(root, [mutation["test"]])
    finally:
        path.write_text(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MUTATIONS, metavar="NAME", default=MUTATIONS)
    chosen = {name: MUTATIONS[name] for name in parser.parse_args().only}
    table = Table("mutation", "outcome", "seconds", "what it breaks")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(ROOT / "pyproject.toml", root)
        for room in ("nasi_jax", "benchmarks", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / room, root / room, ignore=ignored)
        status, said, _ = tested(root, [mutation["test"] for mutation in chosen.values()])
        if status:
            sys.exit(f"the tests do not pass as it is:\n{said}")
        outcomes = []
        for name, mutation in chosen.items():
            status, said, seconds = tried(root, mutation)
            outcome = OUTCOMES.get(status, f"not tested, status {status}")
            print(f"{name}: {outcome} in {seconds:.0f} s", file=sys.stderr, flush=True)
            if status not in OUTCOMES:
                print(said, file=sys.stderr)
            outcomes.append(outcome)
            table.add_row(name, outcome, f"{seconds:.0f}", mutation["breaks"])
    Console().print(table)
    sys.exit(any(outcome != "killed" for outcome in outcomes))


if __name__ == "__main__":
    main()
