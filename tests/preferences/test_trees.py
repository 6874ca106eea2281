"""Trees to traces, by a hand-made tree."""

from caspo_jax.preferences import build_candidates, select_pairs, tree_traces
from caspo_jax.preferences.config import PairConfig
from caspo_jax.steps import StatedEquations, annotate_traces
from caspo_jax.types import CatNode, CatTree, Question

VOCABULARY = [bytes([b]) for b in range(256)] + [b""]


def node(parent, text, status, reason, eos=False):
    ids = (*text.encode(), *((256,) if eos else ()))
    return CatNode(parent, ids, (-0.5,) * len(ids), (0.5,) * len(ids), 0.6, 0.7, status, reason)


TREE = CatTree(
    "q",
    (1, 2),
    (
        node(-1, "1 + 1 = 2\n\n", "closed", None),
        node(0, "2 + 2 = 4\n\n", "closed", None),
        node(0, "2 + 2 = 5\n\n", "pruned", "threshold"),
        node(1, "Answer: 4", "finished", "eos", eos=True),
        node(1, "Answer", "expired", "budget"),
    ),
    (0, 0),
    None,
)


def test_leaves_become_traces_and_siblings_become_pairs():
    question = Question(id="q", question="?", gold="4", prompt_ids=(1, 2))
    traces = tree_traces(TREE, question, VOCABULARY)
    assert [(t.id, t.finish_reason) for t in traces] == [
        ("q/leaf 2", "pruned"),
        ("q/leaf 3", "eos"),
        ("q/leaf 4", "budget"),
    ]
    assert traces[1].text == "1 + 1 = 2\n\n2 + 2 = 4\n\nAnswer: 4"
    assert len(traces[1].token_ids) == len(traces[1].logprob) == len(traces[1].entropy)
    annotated = annotate_traces(traces, VOCABULARY, verifier=StatedEquations())
    candidates, counts = build_candidates(annotated)
    assert counts["unfinished"] == 1
    pairs, counts = select_pairs(candidates, PairConfig(kinds=("wrong",), tau=0.0))
    assert [(p.prefix, p.chosen, p.rejected) for p in pairs] == [("1 + 1 = 2\n\n", "2 + 2 = 4", "2 + 2 = 5")]
    assert counts["duplicate_ids"] == 3  # what leaves share counts once
