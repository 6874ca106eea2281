"""Every program under two processes: one of them writes, and what is written is whole."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from processes import start
from test_two_processes import free_port

from caspo_jax.records import trace_from_record
from caspo_jax.store import load_records

pytestmark = pytest.mark.slow


def test_one_process_writes_for_every_program(tmp_path):
    script, port = Path(__file__).parent / "programs.py", free_port()
    processes = [start(script, index, port, tmp_path, devices=4) for index in range(2)]
    try:
        ended = [process.communicate(timeout=1500) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("the programs did not end in time")
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, ended):
        assert process.returncode == 0, err[-4000:]
    assert json.loads(ended[1][0].splitlines()[-1]) == []
    assert "traces in" in ended[0][0]
    assert "traces in" not in ended[1][0]
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".tmp", ".partial"))]
    for name in ("traces", "scores", "annotated"):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 32
    (parquet,) = (tmp_path / "dataset" / "data").iterdir()
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(parquet).num_rows
    assert rows == sum(len(t.steps) for t in load_records(tmp_path / "annotated.jsonl", trace_from_record))
    for manifest in tmp_path.rglob("*manifest.json"):
        assert json.loads(manifest.read_text())["complete"], manifest
    for name in (
        "trl.jsonl", "policy/model.safetensors", "adapter/adapter_model.safetensors", "calibration.json",
        "evaluated/curve.png", "faithful/report.json", "faithful/probe/probe.safetensors",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0, name
