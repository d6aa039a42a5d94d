"""Figures as files, made without a display."""

from __future__ import annotations

import io
import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nasi_jax.storage import files


def render(figure: Figure, kind: str) -> bytes:
    """Renders a figure to the bytes of a file, deterministically.

    Args:
      figure: what is drawn.
      kind: `svg` (text stays text) or `png` (200 dots per inch).

    Raises:
      ValueError: for another kind.
    """
    if kind not in ("svg", "png"):
        raise ValueError(f"a figure is saved as .svg or .png, not {kind!r}")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nasi_jax", "svg.fonttype": "none"}):
        figure.savefig(content, format=kind, dpi=200, metadata=metadata)
    return content.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure atomically.

    Args:
      figure: what is written.
      path: ends in `.svg` or `.png`; see `render`.

    Raises:
      ValueError: for another suffix.
    """
    path = Path(path)
    files.write_bytes(path, render(figure, path.suffix.lower().removeprefix(".")))
