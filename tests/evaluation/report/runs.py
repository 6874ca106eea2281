"""Run folders made by hand: small, long, large, of every program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.evaluation.report.records import (
    HOSTILE,
    ODD,
    TOKENIZER,
    pair,
    score,
    tokenizer,
    trace,
    tree,
    write_lines,
)

SUMMARY = {
    "seed": 0,
    "questions": 48,
    "final": "round_1",
    "policies": [
        {
            "name": name,
            "path": "nowhere",
            "step_accuracy": accuracy,
            "ece": 0.1 - accuracy / 100,
            "intervals": {"step_accuracy": [accuracy - 0.02, accuracy + 0.02]},
            "strategies": {
                "greedy": {"accuracy": accuracy - 0.1, "tokens_per_question": 47.0, "settings": {}},
                "cat": {"accuracy": accuracy + 0.05, "tokens_per_question": 190.4, "settings": {}},
            },
        }
        | (
            {"paired_with_base": {"step_accuracy": {"difference": 0.1, "low": 0.05, "high": 0.15}}}
            if name != "base"
            else {}
        )
        for name, accuracy in (("base", 0.75), ("round_1", 0.85))
    ],
    "final_minus": {"sft": {"step_accuracy": {"difference": 0.01, "low": -0.02, "high": 0.04}}},
}


METRICS = [
    {
        "schema": {"name": "metrics", "version": 1},
        "step": k,
        "loss": 0.7 / k,
        "rewards/margin": 0.1 * k,
        "logps/chosen": -2.0 + 0.1 * k,
    }
    for k in range(1, 6)
]


MANIFEST = {
    "program": "train",
    "config": {"note": "</pre><script>window.pwned = 1</script>"},
    "inputs": {},
    "versions": {"jax": "0.10.2"},
    "complete": True,
    "counts": {"updates": 5},
    "seconds": 1.5,
}


def small_run(folder: Path) -> Path:
    """Every kind of record, with odd and hostile text in all of them."""
    tok = tokenizer()
    shutil.copytree(TOKENIZER, folder / "policy")
    right, wrong, flawed = ("correct", 0.9), ("wrong", 0.8), ("correct", 0.5)
    traces = [
        trace(tok, "q1/0", [("First, 6 × 7 is 42.", *right), ("So 42.", *right)]),
        trace(tok, "q1/1", [("It is 48.", *wrong)], answer="48", correct=False),
        trace(tok, "q1/2", [("It is 48.", *wrong), ("No: 42.", *flawed)], path_confidence=None),
        trace(
            tok,
            "q2/0",
            [(ODD.replace("\ud800", ""), *right), (HOSTILE, *wrong)],
            question=HOSTILE,
            answer=HOSTILE,
            gold=ODD,
        ),
    ]
    traces[0]["steps"][0]["decisiveness"] = 0.25
    write_lines(folder / "samples" / "base" / "annotated.jsonl", traces)
    finished = trace(tok, "q1/0", [("First, 6 × 7.", *right), ("So 42.", *right)])
    write_lines(folder / "samples" / "base" / "cat.jsonl", [finished])
    write_lines(folder / "samples" / "base" / "trees.jsonl", [tree(tok)])
    pairs = [pair(tok), pair(tok, "p2", HOSTILE, ODD.replace("\ud800", ""))]
    write_lines(folder / "round_1" / "pairs.jsonl", pairs)
    for policy, chosen, rejected in (("base", -0.9, -0.5), ("round_1", -0.3, -1.2)):
        path = folder / "samples" / policy / "pair_scores.jsonl"
        write_lines(path, [score(pairs[0], policy, chosen, rejected)])
    write_lines(folder / "round_1" / "train" / "metrics.jsonl", METRICS)
    (folder / "round_1" / "train" / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"note": HOSTILE}), encoding="utf-8")
    return folder


def long_run(folder: Path, tokens: int = 20_000) -> Path:
    """One trace of hostile text with `tokens` tokens, in many steps."""
    tok = tokenizer()
    shutil.copytree(TOKENIZER, folder / "policy")
    step = HOSTILE + "🤖 漢字 \n and so on, line after line. " * 8
    each = len(tok.encode(step, add_special_tokens=False))
    record = trace(tok, "long/0", [(step, "correct", 0.7)] * (tokens // each + 1))
    write_lines(folder / "traces.jsonl", [record])
    return folder


def large_run(folder: Path, count: int = 10_000) -> Path:
    """`count` traces, eight a question."""
    tok = tokenizer()
    shutil.copytree(TOKENIZER, folder / "policy")
    kinds = [
        trace(
            tok,
            "x",
            [("First, 6 × 7 is 42, as everyone knows.", "correct", 0.9), ("So 42.", "correct", 0.95)],
        ),
        trace(
            tok,
            "y",
            [("First, 6 × 7 is 48.", "wrong", 0.7), ("So 48.", "correct", 0.6)],
            answer="48",
            correct=False,
        ),
        trace(tok, "z", [("First, 6 × 7 is 48.", "wrong", 0.4), ("So 42.", "correct", 0.7)]),
    ]
    records = [
        kinds[i % 3] | {"id": f"q{i // 8}/{i % 8}", "question": f"Question {i // 8}?"} for i in range(count)
    ]
    write_lines(folder / "traces.jsonl", records)
    return folder


def evaluate_run(folder: Path) -> Path:
    """What `experiments.evaluate` leaves behind, with a benchmark whose name is hostile."""
    tok = tokenizer()
    shutil.copytree(TOKENIZER, folder / "policy")
    sizes = [("greedy", "1", 0.7, 50), ("cat", "4", 0.85, 190), ("sequence_vote", "= cat 4", 0.8, 188)]
    sizes += [(f"strategy_{k}", "2", 0.5 + k / 50, 60 + 30 * k) for k in range(12)]
    rows = [
        {
            "benchmark": name,
            "strategy": strategy,
            "size": size,
            "questions": 24,
            "answers": 1,
            "accuracy": accuracy,
        }
        | {
            "low": accuracy - 0.1,
            "high": accuracy + 0.1,
            "tokens": tokens,
            "calls": tokens + 1,
            "scored": 0.0,
        }
        | {"seconds": None if strategy == "greedy" else 0.25}
        for name in ("graph", HOSTILE)
        for strategy, size, accuracy, tokens in sizes
    ]
    paired = [
        {"benchmark": "graph", "strategy": "cat", "size": "4", "baseline": other, "baseline_size": size}
        | {"questions": 24, "difference": difference, "low": difference - 0.02, "high": difference + 0.02}
        | {"p_value": 0.0001, "tokens": 190.0, "baseline_tokens": 188.0, "verdict": verdict}
        for other, size, difference, verdict in (
            ("greedy", "1", 0.15, "above"),
            ("sequence_vote", "= cat 4", 0.01, "equal"),
        )
    ]
    confidences = [
        {
            "confidence": name,
            "items": 90,
            "auroc": auroc,
            "auroc_low": auroc - 0.05,
            "auroc_high": auroc + 0.05,
        }
        | {
            "within_question": auroc,
            "within_question_groups": 7,
            "within_prefix": None,
            "within_prefix_groups": 0,
        }
        | {"ece": 0.1, "brier": 0.2}
        for name, auroc in (("mean_logprob", 0.93), ("entropy", 0.86), ("length", 0.55))
    ]
    figures = {
        "auroc": 0.8,
        "auroc_low": 0.7,
        "auroc_high": 0.9,
        "bias": 0.1,
        "ece": 0.12,
        "brier_scaled": 0.2,
    }
    calibration = [
        {"benchmark": name, "strategy": strategy, "size": size, "answers": 24, "accuracy": 0.7}
        | figures
        | {"within_question": within, "within_question_groups": groups}
        for name in ("graph", HOSTILE)
        for strategy, size, within, groups in (("greedy", "1", None, 0), ("sample", "1", 0.75, 9))
    ]
    for name, record in (
        ("table", {"rows": rows}),
        ("calibration", {"rows": calibration}),
        ("paired", {"rows": paired}),
        (
            "confidences.steps",
            {"rows": confidences, "overview": {"items": 90, "questions": 24, "accuracy": 0.78}},
        ),
    ):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    path = trace(tok, "q1/0", [("First, 6 × 7.", "correct", 0.9), ("So 42.", "correct", 0.9)])
    write_lines(folder / "samples" / "graph" / "cat_4.trees.jsonl", [tree(tok)])
    write_lines(folder / "samples" / "graph" / "cat_4.jsonl", [path])
    return folder


def faithfulness_run(folder: Path) -> Path:
    """What `experiments.faithfulness` leaves behind, for four traces; the scorer and an estimator have hostile names."""
    tok = tokenizer()
    shutil.copytree(TOKENIZER, folder / "policy")
    said = [("Perhaps 6 × 7 is 42.", 0.3), ("Surely 42.", 0.95), ("It may be 48.", 0.4)]
    traces = [
        trace(tok, f"q{k}/0", [(text, "unknown", None) for text, _ in said], path_confidence=None)
        for k in range(4)
    ]
    write_lines(folder / "traces.jsonl", traces)
    steps = [
        {
            "schema": {"name": "faithfulness_step", "version": 1},
            "id": f"q{k}/0/{i}",
            "trace_id": f"q{k}/0",
            "question_id": f"q{k}",
            "step_index": i,
            "position": i / 2,
            "text": text,
            "right": i < 2,
            "decisiveness": {HOSTILE: decisive},
            "confidence": {"entropy": 0.2 + 0.2 * i + 0.05 * k, "prefix": None if i else 0.5, HOSTILE: 0.9},
            "faithfulness": {},
        }
        for k in range(4)
        for i, (text, decisive) in enumerate(said)
    ]
    write_lines(folder / "steps.jsonl", steps)

    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    metrics = ("mfg", "cmfg", "cmfg_occupied", "cmfg_star", "spearman", "kendall", "trace_spearman", "gap")
    block = {
        "steps": 12,
        "mean_decisiveness": 0.55,
        "mean_confidence": 0.48,
        "metrics": {name: interval(0.8) for name in metrics},
        "baselines": {
            kind: {"value": 1.0, "mfg": 0.6, "cmfg_star": 0.5}
            for kind in ("always_decisive", "constant", "best_constant")
        }
        | {
            "permuted": {m: {"mean": 0.7, "low": 0.65, "high": 0.75, "p": 0.01} for m in ("mfg", "cmfg_star")}
        },
        "skill": {m: interval(0.33) for m in ("mfg", "cmfg_star")},
        "coverage": {"occupied_bins": 5},
        "trajectory": {
            "position": [0.05 + k / 10 for k in range(10)],
            "decisiveness": [0.5, None] * 5,
            "confidence": [0.4, None] * 5,
            "steps": [1, 0] * 5,
        },
    }
    report = {
        "schema": {"name": "faithfulness_report", "version": 1},
        "traces": {"traces": 4, "steps": 12},
        "scorer_agreement": [],
        "estimator_agreement": [
            {"first": "entropy", "second": HOSTILE, "steps": 12, "spearman": 0.5, "kendall": 0.4}
            | {"mean_absolute_difference": 0.1, "mean_difference": 0.02}
        ],
        "faithfulness": {HOSTILE: {"entropy": block, "prefix": {"steps": 0}, HOSTILE: block}},
        "calibration": {
            name: {"steps": 12, "accuracy": 0.6, "auroc": interval(0.8), "bias": interval(0.1)}
            | {"within_prefix_auroc": interval(0.8) if groups else {"value": None}}
            | {"within_prefix_groups": groups}
            for name, groups in (("entropy", 3), (f"words:{HOSTILE}", 0))
        },
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder
