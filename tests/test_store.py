"""Files that survive: torn lines, other settings, malformed input."""

import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.store import (
    JsonlOutput,
    Manifest,
    hash_path,
    load_records,
    manifest_path,
    read_jsonl,
    write_jsonl,
)


def open_output(path, **config):
    manifest = Manifest.open(manifest_path(path), program="p", config=config)
    return JsonlOutput(path, manifest)


def test_a_torn_last_line_is_dropped_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    out = open_output(path, a=1)
    out.append([{"id": "x", "v": 1}, {"id": "y", "v": 2}])
    with open(tmp_path / "out.jsonl.partial", "ab") as file:
        file.write(b'{"id": "z", "v')
    again = open_output(path, a=1)
    assert again.done == {"x", "y"}
    again.append([{"id": "y", "v": 2}, {"id": "z", "v": 3}])
    again.finish(records=3)
    assert [record["id"] for _, record in read_jsonl(path)] == ["x", "y", "z"]
    assert open_output(path, a=1).complete
    contents = json.loads(manifest_path(path).read_text())
    assert contents["complete"] is True
    assert contents["counts"] == {"records": 3}


def test_killed_between_rename_and_manifest(tmp_path):
    path = tmp_path / "out.jsonl"
    out = open_output(path)
    out.append([{"id": "x"}])
    (tmp_path / "out.jsonl.partial").rename(path)
    again = open_output(path)
    assert not again.complete
    assert again.done == {"x"}
    again.finish()
    assert [r["id"] for _, r in read_jsonl(path)] == ["x"]


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1, nested={"rate": 0.5})
    with pytest.raises(UserError, match=r"nested\.rate: 0\.5 then, 0\.7 now; seed: 1 then, 2 now"):
        open_output(path, seed=2, nested={"rate": 0.7})
    manifest = Manifest.open(manifest_path(path), program="p", config={"seed": 2}, overwrite=True)
    assert manifest.contents["config"] == {"seed": 2}


def test_overwrite_starts_anew(tmp_path):
    path = tmp_path / "out.jsonl"
    out = open_output(path, seed=1)
    out.append([{"id": "x"}])
    out.finish()
    fresh = JsonlOutput(
        path, Manifest.open(manifest_path(path), program="p", config={"seed": 2}, overwrite=True)
    )
    assert fresh.done == set()
    assert not path.exists()


def test_a_file_of_somebody_else_s_stays(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("mine\n")
    for _ in range(2):
        with pytest.raises(UserError, match="no manifest beside it"):
            open_output(path, seed=1)
        assert [p.name for p in tmp_path.iterdir()] == ["questions.jsonl"]
    assert path.read_text() == "mine\n"
    manifest = Manifest.open(manifest_path(path), program="p", config={"seed": 1}, overwrite=True)
    assert JsonlOutput(path, manifest).done == set()


def test_changed_input_is_noticed(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("a")
    where = tmp_path / "m.json"
    Manifest.open(where, program="p", config={}, inputs={"source": source})
    source.write_text("b")
    with pytest.raises(UserError, match=r"inputs\.source: the contents changed"):
        Manifest.open(where, program="p", config={}, inputs={"source": source})


@pytest.mark.parametrize(
    "line, message",
    [(b"{", "not valid JSON"), (b"[1]", "expected a JSON object"), (b"\xff\xfe", "not valid JSON")],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"in\.jsonl:2: .*{message}"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="cannot read"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


def test_parse_errors_carry_file_and_line(tmp_path):
    path = tmp_path / "in.jsonl"
    write_jsonl(path, [{"n": 1}, {"m": 2}])
    with pytest.raises(UserError, match=r"in\.jsonl:2: malformed record \(KeyError"):
        load_records(path, lambda record: record["n"])


def test_folder_hash_sees_names_and_contents(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = hash_path(folder)
    (folder / "manifest.json").write_text("{}")
    assert hash_path(folder) == first
    (folder / "a").rename(folder / "b")
    assert hash_path(folder) != first


@pytest.mark.parametrize("name", ["run", "run_v1.0", "traces.jsonl"])
def test_a_manifest_lies_beside_a_file_and_in_a_folder_whatever_its_name(tmp_path, name):
    assert manifest_path(tmp_path / name) == tmp_path / f"{name}.manifest.json"
    assert manifest_path(tmp_path / name, folder=True) == tmp_path / name / "manifest.json"


def test_an_output_without_a_suffix(tmp_path):
    path = tmp_path / "traces"
    out = open_output(path)
    out.append([{"id": "x"}])
    out.finish()
    assert path.is_file()
    assert open_output(path).complete
