"""Files are written whole or not at all."""

import errno
import os

import pytest

from nasi_jax.storage import files


@pytest.mark.parametrize("content", [b"", b"a\nb", bytes(range(256)) * 1000])
def test_writes_the_content(tmp_path, content):
    path = tmp_path / "file"
    files.write_bytes(str(path), content)
    assert path.read_bytes() == content
    files.write_bytes(path, content + b"!")
    assert path.read_bytes() == content + b"!"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_all_as_it_was(tmp_path, monkeypatch, step, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    if old is not None:
        assert path.read_bytes() == old


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda *a: (calls.append("fsync"), fsync(*a)))
    monkeypatch.setattr(files.os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    files.write_bytes(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("name", ["missing/file", "plain/file", "directory", "n" * 300])
def test_an_impossible_path_is_an_os_error(tmp_path, name):
    (tmp_path / "plain").write_bytes(b"here")
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        files.write_bytes(tmp_path / name, b"content")
    assert sorted(os.listdir(tmp_path)) == ["directory", "plain"]


def test_a_long_name_is_possible(tmp_path):
    path = tmp_path / ("n" * 255)
    files.write_bytes(path, b"content")
    assert path.read_bytes() == b"content"
