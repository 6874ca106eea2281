"""Files: malformed lines, content hashes."""

import errno
import os

import pytest

from caspo_jax import store
from caspo_jax.errors import UserError
from caspo_jax.store import (
    hash_path,
    load_records,
    read_json,
    read_jsonl,
    read_value,
    replacing,
    to_line,
    write_json,
    write_jsonl,
    write_text,
)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "deep" / "a.json"
    write_text(path, "old")

    def fails():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old"
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        fails()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.json"]


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        write_text(tmp_path / "a.json", "{}")
    assert os.listdir(tmp_path) == []


def test_two_runs_that_write_one_file_have_a_temporary_each(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with replacing(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("os.getpid", lambda: 1)
        write_text(path, "theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "mine"


def test_the_writer_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "is_writer", lambda: False)
    write_text(tmp_path / "a.json", "{}")
    write_jsonl(tmp_path / "a.jsonl", [{}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": [value]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line({"x": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"in\.jsonl:2: .*{message}"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="cannot read"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


def test_a_file_from_windows_is_read(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "\\ud83d\\ude00"}\r\n\r\n{"id": 2}\r\n')
    assert [record["id"] for _, record in read_jsonl(path)] == ["\U0001f600", 2]


def test_json_files_are_read_or_refused_by_name(tmp_path):
    path = tmp_path / "in.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    for content, message in (
        (b'{"a": 1,\n oops}', r"in\.json:2: not valid JSON"),
        (b"\xff\xfe", r"in\.json: not valid JSON"),
        (b"[" * 100_000, r"in\.json: not valid JSON"),
        (b"[1]", r"in\.json: expected a JSON object, found list"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_json(path)
    path.write_bytes(b"[1]")
    assert read_value(path) == [1]
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "absent.json")


def test_parse_errors_carry_file_and_line(tmp_path):
    path = tmp_path / "in.jsonl"
    write_jsonl(path, [{"n": 1}, {"m": 2}])
    with pytest.raises(UserError, match=r"in\.jsonl:2: malformed record \(KeyError"):
        load_records(path, lambda record: record["n"])


def test_an_integer_beyond_every_float_is_named(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"x": 1' + "0" * 400 + "}\n")
    with pytest.raises(UserError, match=r"in\.jsonl:1: malformed record"):
        load_records(file, lambda record: float(record["x"]))


def test_folder_hash_sees_names_and_contents(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = hash_path(folder)
    (folder / "manifest.json").write_text("{}")
    assert hash_path(folder) == first
    (folder / "a").rename(folder / "b")
    assert hash_path(folder) != first


def test_a_folder_s_hash_is_of_all_that_is_in_it_and_of_nothing_hidden(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    seen = set()

    def changed(name, content):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        value = hash_path(folder)
        assert value not in seen
        seen.add(value)
        return value

    changed("a", b"bc")
    (folder / "a").unlink()
    changed("ab", b"c")
    changed("sub/a", b"1")
    (folder / "sub" / "a").unlink()
    changed("other/a", b"1")
    large = bytes(1 << 20)
    changed("large", large)
    last = changed("large", large + b"1")
    for name in (".lock", "sub/.lock", ".cache/a", "x.manifest.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("1")
        assert hash_path(folder) == last, name
    found = type(folder).rglob
    monkeypatch.setattr(type(folder), "rglob", lambda self, pattern: reversed([*found(self, pattern)]))
    assert hash_path(folder) == last  # in whatever order the system lists it
