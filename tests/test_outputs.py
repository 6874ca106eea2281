"""Outputs that survive: torn lines, other settings, files of somebody else."""

import json
import os
import tracemalloc

import pytest

from caspo_jax.errors import UserError
from caspo_jax.outputs import (
    ROWS,
    JsonlOutput,
    Manifest,
    check_own,
    discard_unfinished,
    manifest_path,
    read_manifest,
)
from caspo_jax.store import each_record, hash_path, load_records, read_jsonl, write_json, write_jsonl


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


def test_a_large_file_is_taken_up_and_written_a_line_at_a_time(tmp_path):
    """A run's traces are gigabytes: never all of them, several times over, in memory."""
    path, size = tmp_path / "out.jsonl", 1 << 16
    records = [{"id": str(i), "v": "x" * size} for i in range(100)]
    open_output(path).append(records)
    with open(f"{path}.partial", "ab") as file:
        file.write(b'{"id": "z", "v')
    tracemalloc.start()
    assert len(open_output(path).done) == 100
    write_jsonl(tmp_path / "whole.jsonl", records)
    assert sum(1 for _ in each_record(tmp_path / "whole.jsonl", dict)) == 100
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * size
    assert [r for _, r in read_jsonl(f"{path}.partial")] == records  # without the torn line
    assert load_records(tmp_path / "whole.jsonl", dict) == records


def test_of_two_records_of_one_id_the_first_is_written(tmp_path):
    out = open_output(tmp_path / "out.jsonl")
    out.append([{"id": "x", "v": 1}, {"id": "x", "v": 2}])
    out.append([{"id": "x", "v": 3}, {"id": "y", "v": 4}])
    assert [record["v"] for record in out.records()] == [1, 4]


def test_a_file_beside_an_unfinished_one_is_neither_taken_up_nor_lost(tmp_path):
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    open_output(path).append([{"id": "x", "v": 1}, {"id": "y", "v": 2}])
    path.write_bytes(
        partial.read_bytes().replace(b"1", b"7").splitlines(keepends=True)[0]
    )  # a copy, to look at
    for _ in range(2):
        with pytest.raises(UserError, match=r"out\.jsonl is there, though the run .*\.partial"):
            open_output(path)
    assert path.read_text() == '{"id":"x","v":7}\n'
    again = JsonlOutput(path, Manifest.open(manifest_path(path), program="p", config={}, overwrite=True))
    assert again.records() == [{"id": "x", "v": 1}, {"id": "y", "v": 2}]
    assert not path.exists()
    again.finish()
    assert len(list(read_jsonl(path))) == 2


def test_a_record_s_own_schema_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    manifest = Manifest.open(manifest_path(path), program="p", config={})
    out = JsonlOutput(path, manifest, schema={"name": "trace", "version": 1})
    out.append([{"id": "x"}, {"schema": {"name": "other", "version": 2}, "id": "y"}])
    assert [(r["schema"]["name"], list(r)) for r in out.records()] == [
        ("trace", ["schema", "id"]),
        ("other", ["schema", "id"]),
    ]


def test_lines_are_on_the_disk_before_they_count_as_done(tmp_path, monkeypatch):
    out = open_output(tmp_path / "out.jsonl")
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        assert not out.done
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    out.append([{"id": "x"}])
    assert synced == [os.path.getsize(tmp_path / "out.jsonl.partial")]
    assert out.done == {"x"}


def test_records_are_those_of_the_file_under_either_name(tmp_path):
    path = tmp_path / "out.jsonl"
    out = open_output(path)
    assert out.records() == []
    out.append([{"id": "x"}])
    assert out.records() == [{"id": "x"}]
    out.finish()
    assert out.records() == open_output(path).records() == [{"id": "x"}]


def test_scratch_space_leaves_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1).append([{"id": "x"}])
    discard_unfinished(path)
    assert list(tmp_path.iterdir()) == []
    assert open_output(path, seed=2).done == set()


def test_a_file_written_whole_is_refused_unless_a_manifest_knows_it(tmp_path):
    path, folder = tmp_path / "out.json", tmp_path / "manifest.json"
    check_own(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="no manifest beside it"):
        check_own(path)
    check_own(path, overwrite=True)
    write_json(folder, {})
    check_own(path, manifest=folder)
    write_json(manifest_path(path), {})
    check_own(path)
    with pytest.raises(UserError, match="no manifest beside it"):
        check_own(path, manifest=tmp_path / "absent.json")


def test_what_is_complete_keeps_the_seconds_of_the_run_that_did_it(tmp_path):
    path = tmp_path / "o.manifest.json"
    Manifest.open(path, program="p", config={}).finish(records=3)
    before = read_manifest(path) | {"seconds": 7.5}
    write_json(path, before)
    Manifest.open(path, program="p", config={}).finish(records=3)
    assert read_manifest(path) == before
    Manifest.open(path, program="p", config={}).finish(records=4)
    assert read_manifest(path)["counts"] == {"records": 4}
    assert read_manifest(path)["seconds"] < 7.5


def test_hashes_among_the_settings_stand_with_the_inputs(tmp_path):
    path, given = tmp_path / "o.manifest.json", tmp_path / "in.txt"
    given.write_text("in")
    config = {"policy": hash_path(given), "seed": 3, "strategy": "cat"}

    def opened(**changed):
        return Manifest.open(path, program="p", config=config | changed, inputs={"input": given})

    opened().finish()
    made = read_manifest(path)
    assert made["inputs"] == {"policy": hash_path(given), "input": hash_path(given)}
    assert made["config"] == config
    assert opened().complete
    with pytest.raises(UserError, match=r"policy: .* then, .* now") as refused:
        opened(policy="0" * 64)
    assert "inputs" not in str(refused.value)
    write_json(path, made | {"inputs": {"input": hash_path(given)}})  # as earlier versions wrote it
    assert opened().complete
    given.write_text("another")
    with pytest.raises(UserError, match=r"inputs\.input: the contents changed"):
        opened()


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


def test_settings_that_are_free_stay_those_of_the_beginning(tmp_path):
    def opened(rows, judge_rows, seed=0):
        verifier = {"decoding": {"batch_size": judge_rows, "seed": seed}}
        config = {"batch_size": rows, "train": {"batch_size": 4}, "verifier_settings": verifier}
        path = tmp_path / "manifest.json"
        return Manifest.open(path, program="p", config=config, free=ROWS).contents["config"]

    begun = opened(64, 32)
    assert opened(8, 4) == begun == read_manifest(tmp_path / "manifest.json")["config"]
    with pytest.raises(UserError) as error:
        opened(8, 4, seed=1)
    assert str(error.value).count(" then, ") == 1
    with pytest.raises(UserError, match=r"\(train\.batch_size: 4 then, None now\)"):
        Manifest.open(tmp_path / "manifest.json", program="p", config={**begun, "train": {}}, free=ROWS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_setting_that_json_does_not_hold_is_named(tmp_path, value):
    path = tmp_path / "out" / "manifest.json"
    with pytest.raises(UserError, match=rf"probe\.l2={value}: give a finite number"):
        Manifest.open(path, program="p", config={"seed": 0, "probe": {"l2": value}})
    assert not path.exists()


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


def test_a_setting_that_came_or_went_is_named(tmp_path):
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1, old=2)
    with pytest.raises(UserError, match=r"new: None then, 3 now; old: 2 then, None now"):
        open_output(path, seed=1, new=3)


def test_another_program_s_output_is_refused_by_its_name_or_started_anew(tmp_path):
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1).append([{"id": "x"}])

    def opened(overwrite):
        return Manifest.open(manifest_path(path), program="q", config={"seed": 1}, overwrite=overwrite)

    with pytest.raises(UserError, match="is of 'p', and 'q' would write here"):
        opened(False)
    assert JsonlOutput(path, opened(True)).done == set()
    assert read_manifest(manifest_path(path))["program"] == "q"


def test_lines_that_were_begun_with_other_settings_go(tmp_path):
    """A run that never finished left only its partial file."""
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1).append([{"id": "x"}])
    manifest = Manifest.open(manifest_path(path), program="p", config={"seed": 2}, overwrite=True)
    fresh = JsonlOutput(path, manifest)
    assert fresh.done == set()
    fresh.finish()
    assert path.read_text() == ""


def test_killed_between_manifest_and_file_overwriting_still_may(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    for _ in range(2):  # a kill right after the manifest, and the same command again
        manifest = Manifest.open(manifest_path(path), program="p", config={}, overwrite=True)
    assert JsonlOutput(path, manifest).done == set()


def test_overwriting_goes_on_after_a_kill(tmp_path):
    """The same command again: it must not lose what it had written, however often it is killed."""
    path = tmp_path / "out.jsonl"
    open_output(path, seed=1).finish()

    def again():
        manifest = Manifest.open(manifest_path(path), program="p", config={"seed": 2}, overwrite=True)
        return JsonlOutput(path, manifest)

    again().append([{"id": "x"}])
    assert again().done == {"x"}
    again().finish()
    assert again().complete
    manifest_path(path).write_text("{")
    assert again().done == set()


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


def test_half_a_character_is_kept(tmp_path):
    """A server may cut an emoji in two and write what is left as JSON."""
    path = tmp_path / "out.jsonl"
    path.write_text(r'{"id": "half \ud83d", "whole": "\ud83d\ude00"}')
    ((_, record),) = read_jsonl(path)
    written = open_output(tmp_path / "copy.jsonl")
    written.append([record])
    written.finish()
    ((_, copy),) = read_jsonl(written.path)
    assert copy == record == {"id": "half \ud83d", "whole": "\U0001f600"}
    assert "\U0001f600" in written.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [b"\0\0\0", b"[1]", b"{}"])
def test_a_damaged_line_of_an_output_that_was_begun_is_named(tmp_path, line):
    path = tmp_path / "out.jsonl"
    open_output(path).append([{"id": "x"}])
    with open(tmp_path / "out.jsonl.partial", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=r"out\.jsonl\.partial:2: a damaged line"):
        open_output(path)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_file_has_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        manifest_path(name)


@pytest.mark.parametrize("name", ["run", "run_v1.0", "traces.jsonl"])
def test_a_manifest_lies_beside_a_file_and_in_a_folder_whatever_its_name(tmp_path, name):
    assert manifest_path(tmp_path / name) == tmp_path / f"{name}.manifest.json"
    for _ in range(2):  # a folder that is there is one too
        assert manifest_path(tmp_path / name, folder=True) == tmp_path / name / "manifest.json"
        (tmp_path / name).mkdir(exist_ok=True)


def test_an_output_without_a_suffix(tmp_path):
    path = tmp_path / "traces"
    out = open_output(path)
    out.append([{"id": "x"}])
    out.finish()
    assert path.is_file()
    assert open_output(path).complete


def test_a_manifest_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "manifest.json"
    assert read_manifest(path) == {}
    for contents in ("{", "[]", '{"config": 1}', "\ud800"):
        path.write_bytes(contents.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"manifest\.json:.* remove (it|this manifest)"):
            read_manifest(path)
    Manifest.open(path, program="p", config={"seed": 2}, overwrite=True)
    assert read_manifest(path)["config"] == {"seed": 2}
