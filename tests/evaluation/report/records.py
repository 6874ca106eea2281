"""Records made by hand, as a run's files hold them: traces, trees, pairs, scores; with odd and hostile text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "golden"
TOKENIZER = GOLDEN / "tokenizers" / "qwen_like"  # byte-level: one character may take several tokens
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><!-- <script> & \u2028 \u2029 "
ODD = "naïve 🤖 e\u0301 漢字 👩‍👩‍👧 \ud800 tab\tend"  # a lone surrogate, as JSON from elsewhere may hold


def tokenizer() -> Any:
    from caspo_jax.models import load_tokenizer

    return load_tokenizer(TOKENIZER)


def trace(tok: Any, name: str, steps: list[tuple[str, str, float | None]], **more: Any) -> dict[str, Any]:
    """A trace record: (text, verdict, confidence) a step, joined by blank lines; random statistics, seeded by name."""
    from caspo_jax.models import token_bytes
    from caspo_jax.steps import segment

    text = "\n\n".join(t for t, _, _ in steps)
    ids = tok.encode(text, add_special_tokens=False)
    spelt, spans, _ = segment(ids, token_bytes(tok, len(tok)))
    rng = random.Random(name)
    entropy = [rng.expovariate(4.0) for _ in ids]
    record = {
        "schema": {"name": "trace", "version": 1},
        "id": name,
        "question": "What is 6 × 7?",
        "gold": "42",
        "prompt_ids": [1, 2, 3],
        "token_ids": ids,
        "text": spelt,
        "finish_reason": "eos",
        "answer": "42",
        "correct": True,
        "path_confidence": 0.8,
        "strategy": "sample",
        "logprob": [-rng.expovariate(3.0) for _ in ids],
        "entropy": entropy,
        "steps": [
            {
                "start": span.start,
                "end": span.end,
                "token_start": span.token_start,
                "token_end": span.token_end,
                "text": span.text,
                "confidence": confidence,
                "entropy": 0.1,
                "verdict": verdict,
                "verifier": "exact",
            }
            for span, (_, verdict, confidence) in zip(spans, steps)
        ],
    }
    return record | more


def tree(tok: Any, question: str = "q1") -> dict[str, Any]:
    """Two roots: one pruned, one that forks into a finished and an expired path."""
    texts = ["Six times", "First, 6 × 7.\n\n", "So 42.", "So 4"]
    ids = [tok.encode(t, add_special_tokens=False) for t in texts]
    return {
        "schema": {"name": "tree", "version": 1},
        "question_id": question,
        "prompt_ids": [1, 2, 3],
        "key": [1, 2],
        "threshold": 0.8,
        "vote": "sequence",
        "parent": [-1, -1, 1, 1],
        "status": ["pruned", "closed", "finished", "expired"],
        "reason": ["threshold", "delimiter", "eos", "answers"],
        "confidence": [0.41, 0.93, 0.97, None],
        "path_confidence": [0.41, 0.93, 0.95, 0.93],
        "token_ids": ids,
        "logprob": [[-0.5] * len(i) for i in ids],
        "entropy": [[0.3] * len(i) for i in ids],
    }


def pair(
    tok: Any, name: str = "p1", chosen: str = "6 × 7 = 42\n\n", rejected: str = "6 × 7 = 48\n\n"
) -> dict:
    ids = [tok.encode(t, add_special_tokens=False) for t in (chosen, rejected)]
    return {
        "schema": {"name": "pair", "version": 1},
        "id": name,
        "kind": "wrong",
        "prompt": "What is 6 × 7?",
        "prefix": "Let us see.\n\n",
        "chosen": chosen.strip(),
        "rejected": rejected.strip(),
        "prompt_ids": [1, 2, 3],
        "prefix_ids": [4],
        "chosen_ids": ids[0],
        "rejected_ids": ids[1],
        "ends_trace": [False, False],
        "chosen_confidence": 0.6,
        "rejected_confidence": 0.9,
        "chosen_verdict": "correct",
        "rejected_verdict": "wrong",
        "trace_id": "q1/0",
        "step_index": 1,
        "weight": 1.0,
    }


def score(record: dict[str, Any], policy: str, chosen: float, rejected: float) -> dict[str, Any]:
    return {
        "schema": {"name": "pair_score", "version": 1},
        "pair": record["id"],
        "policy": policy,
        "chosen_logprob": [chosen] * len(record["chosen_ids"]),
        "rejected_logprob": [rejected] * len(record["rejected_ids"]),
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
