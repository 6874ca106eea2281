"""Finished faithfulness reports held together: two policies, a known order, and whose files are replaced."""

import json
import shutil

import pytest

from tests.experiments.conftest import contents
from tests.experiments.test_bad_input import one_line


def test_compare(program, finished, tmp_path):
    folder = finished["folder"]
    code, printed, err = program("faithfulness", compare=f"{folder},{folder}", out_dir=tmp_path, draws=20)
    assert code == 0, err
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["schema"] == {"name": "faithfulness_compare", "version": 1}
    assert record["questions"] == 3
    assert record["faithfulness"]["lexicon"]["hidden"]["mfg"]["difference"] == 0.0
    assert "difference" in printed


def test_order(program, finished, tmp_path):
    folder = finished["folder"]
    code, printed, err = program("faithfulness", order=f"{folder},{folder}", out_dir=tmp_path)
    assert code == 0, err
    record = json.loads((tmp_path / "order.json").read_text())
    assert record["schema"] == {"name": "faithfulness_order", "version": 1}
    found = record["order"]["lexicon"]["entropy"]["mfg"]
    assert found["verdict"] == "undefined"  # a policy is neither above nor below itself
    assert "NO" in printed
    code, _, err = program("faithfulness", order=f"{folder},nowhere", out_dir=tmp_path)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "no report.json in it" in err
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": "x"}', "not a faithfulness"),
        ('{"a": 1}', "not a faithfulness"),
    ):
        (tmp_path / "report.json").write_text(text)
        code, _, err = program("faithfulness", order=f"{folder},{tmp_path}", out_dir=tmp_path / "o")
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert message in err


@pytest.mark.parametrize(
    "kind, theirs", [("compare", "compare.txt"), ("compare", "report.html"), ("order", "order.json")]
)
def test_folders_held_together_replace_their_own_files_alone(program, finished, tmp_path, kind, theirs):
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for folder in (one, other):
        shutil.copytree(finished["folder"], folder, ignore=shutil.ignore_patterns("*.png", "report.html"))
    flags = {kind: f"{one},{other}", "out_dir": out, "draws": 20}
    out.mkdir()
    (out / theirs).write_text("mine")
    one_line(program("faithfulness", **flags), theirs, "--overwrite")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(theirs, "mine")]
    assert program("faithfulness", **flags, overwrite="true")[0] == 0
    written = contents(out)
    assert program("faithfulness", **flags)[0] == 0  # its own now
    one_line(program("faithfulness", **(flags | {kind: f"{other},{one}"})), "folders", "--overwrite")
    one_line(program("faithfulness", compare=f"{one},{other}", out_dir=finished["folder"]), "report.html")
    read_from = other / ("steps.jsonl" if kind == "compare" else "report.json")
    read_from.write_text(read_from.read_text() + "\n")
    one_line(program("faithfulness", **flags), "the contents changed", "--overwrite")
    assert contents(out) == written
    assert program("faithfulness", **flags, overwrite="true")[0] == 0
