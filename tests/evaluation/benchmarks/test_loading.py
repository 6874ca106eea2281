"""Where benchmarks are read from."""

import json
from pathlib import Path

import datasets
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def rows():
    lines = (FIXTURES / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_kind_of_copy_gives_the_same_questions(tmp_path, rows):
    benchmark = get_benchmark("math500")
    expected = benchmark.load(FIXTURES / "math500.jsonl")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "several"))
    clone = tmp_path / "clone" / "data"
    clone.mkdir(parents=True)
    table.to_parquet(str(clone / "test-00000-of-00001.parquet"))
    named = tmp_path / "named"
    named.mkdir()
    (named / "math500_test.jsonl").write_text((FIXTURES / "math500.jsonl").read_text(encoding="utf-8"))
    places = [
        FIXTURES,
        named,
        tmp_path / "one",
        tmp_path / "several",
        clone.parent,
        clone / "test-00000-of-00001.parquet",
    ]
    for place in places:
        assert benchmark.load(place) == expected, place


def test_a_limit_reads_no_further(tmp_path, rows):
    file = tmp_path / "math500.jsonl"
    file.write_text(json.dumps(rows[0]) + "\nnot json\n")
    benchmark = get_benchmark("math500")
    assert len(benchmark.load(file, limit=1)) == 1
    with pytest.raises(UserError, match=r"math500\.jsonl:2: not valid JSON"):
        benchmark.load(file)


def test_bad_places(tmp_path, rows):
    benchmark = get_benchmark("math500")
    with pytest.raises(UserError, match="no such file or folder"):
        benchmark.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        benchmark.load(tmp_path)
    other = tmp_path / "questions.txt"
    other.write_text("x")
    with pytest.raises(UserError, match=r"a \.jsonl or \.parquet file, or a folder"):
        benchmark.load(other)
    empty = tmp_path / "math500.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match="no question of math500"):
        benchmark.load(empty)
    empty.write_text((json.dumps(rows[0]) + "\n") * 2)
    with pytest.raises(UserError, match="two questions have the id"):
        benchmark.load(empty)
    with pytest.raises(UserError, match="limit=0"):
        benchmark.load(FIXTURES, limit=0)


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch, rows):
    asked = {}

    def load_dataset(*arguments, **options):
        asked.update(options, arguments=arguments)
        return iter(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    benchmark = get_benchmark("math500")
    assert len(benchmark.load()) == len(rows)
    assert asked["arguments"][0] == "HuggingFaceH4/MATH-500"
    assert (asked["split"], asked["streaming"]) == ("test", True)
    assert asked["revision"] == benchmark.source.revision


def test_files_of_a_repository_are_read_without_its_script(monkeypatch):
    asked = {}

    def load_dataset(kind, **options):
        asked.update(options, kind=kind)
        text = (FIXTURES / "livecodebench.jsonl").read_text(encoding="utf-8")
        return iter([json.loads(line) for line in text.splitlines()])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    benchmark = get_benchmark("livecodebench")
    benchmark.load()
    assert asked["kind"] == "json"
    assert asked["data_files"][0] == (
        f"hf://datasets/livecodebench/code_generation_lite@{benchmark.source.revision}/test.jsonl"
    )
    assert len(asked["data_files"]) == 6


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"ehovy/race\[test\] .* \(no route\): .* --data=race=PATH$"):
        get_benchmark("race").load()
