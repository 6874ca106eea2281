"""Nearest competitors over a vocabulary of bytes and a scripted model."""

import dataclasses
import random

import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences import (
    Candidate,
    GreedyCompetitors,
    NoCompetitor,
    PairConfig,
    Rival,
    competitors,
    select_pairs,
)
from caspo_jax.steps import StatedEquations, segment
from caspo_jax.types import Question

EOS = 256
VOCABULARY = [bytes([b]) for b in range(256)] + [b""]


def candidate(text="1 + 1 = 2", delimiter="\n\n", hot=8, **fields):
    ids = tuple((text + delimiter).encode())
    defaults = {
        "question": Question(id="q", question="?"),
        "prompt": "?",
        "prompt_ids": (63,),
        "prefix": "so\n\n",
        "prefix_ids": tuple(b"so\n\n"),
        "text": text,
        "token_ids": ids,
        "verdict": "correct",
        "confidence": 0.2,
        "prefix_verdict": "correct",
        "ends_trace": False,
        "is_last": False,
        "trace_id": "t",
        "step_index": 1,
        "entropy": tuple(1.0 if i == hot else 0.1 for i in range(len(ids))),
    }
    return Candidate(**{**defaults, **fields})


class Model:
    """Puts `other` in and goes on with `rest`."""

    def __init__(self, other=b"3", rest=b"\n\n", finished=True):
        self.other, self.rest, self.finished = other[0], tuple(rest), finished
        self.contexts = []

    def other_token(self, contexts, emitted):
        self.contexts += contexts
        assert all(self.other != token for token in emitted)
        return [self.other] * len(contexts)

    def complete(self, contexts):
        self.contexts += contexts
        return [(self.rest, self.finished)] * len(contexts)

    def maker(self):
        return GreedyCompetitors(
            token_bytes=VOCABULARY,
            eos_ids=frozenset({EOS}),
            other_token=self.other_token,
            complete=self.complete,
            verifier=StatedEquations(),
        )


def test_the_most_uncertain_token_is_swapped_and_the_step_finished():
    model = Model(rest=b"\n\nmore")
    (rival,) = model.maker()([candidate()])
    assert bytes(rival.token_ids) == b"1 + 1 = 3\n\n"  # nothing after the step
    assert (rival.text, rival.verdict, rival.ends_trace) == ("1 + 1 = 3", "wrong", False)
    assert [bytes(c) for c in model.contexts] == [b"?so\n\n1 + 1 = ", b"?so\n\n1 + 1 = 3"]


def test_delimiter_tokens_are_never_swapped():
    hot = tuple(9.0 if i >= 9 else 0.5 + (i == 4) for i in range(11))
    (rival,) = Model().maker()([candidate(entropy=hot)])
    assert bytes(rival.token_ids) == b"1 + 3\n\n"
    assert rival.verdict == "unknown"


def test_of_equal_entropies_the_first_is_swapped_and_a_token_without_text_never():
    flat = candidate(entropy=(0.5,) * 11)
    (rival,) = Model(other=b"7").maker()([flat])
    assert rival.text == "7"
    ids = (*b"1 + 1 = 2", EOS)
    last = candidate(token_ids=ids, entropy=(*(float(i) for i in range(9)), 99.0), ends_trace=True)
    (rival,) = Model(rest=(EOS,)).maker()([last])
    assert rival.token_ids == (*b"1 + 1 = 3", EOS)


def test_the_verifier_is_told_where_the_rival_stands():
    asked = []

    class Verifier:
        name = "all"

        def verify(self, items):
            asked.extend(items)
            return ["wrong"] * len(items)

    for rest in ((EOS,), b"\n\n"):
        dataclasses.replace(Model(rest=rest).maker(), verifier=Verifier())([candidate()])
    assert [item.is_last for item in asked] == [True, False]
    ended, item = asked
    assert (item.prefix, item.step, item.question.id) == ("so\n\n", "1 + 1 = 3", "q")
    assert (item.prompt_ids, bytes(item.prefix_ids), bytes(item.step_ids)) == (
        (63,),
        b"so\n\n",
        b"1 + 1 = 3\n\n",
    )
    assert ended.step_ids == (*b"1 + 1 = 3", EOS)


def test_the_candidates_own_alternatives_need_no_model():
    model = Model()
    others = tuple(b"9" * 11)
    (rival,) = dataclasses.replace(model.maker(), other_token=None)([candidate(other_ids=others)])
    assert rival.text == "1 + 1 = 9"
    with pytest.raises(UserError, match="has no other_ids"):
        dataclasses.replace(model.maker(), other_token=None)([candidate()])


def test_eos_ends_the_competitor_and_the_trace():
    (rival,) = Model(rest=(EOS, 65)).maker()([candidate()])
    assert rival.token_ids == (*b"1 + 1 = 3", EOS)
    assert rival.ends_trace


def test_a_swapped_eos_ends_the_step_where_it_stands():
    model = Model(rest=b"never")
    model.other = EOS
    (rival,) = model.maker()([candidate("1 + 1 = 2 + 0", hot=9)])
    assert rival.token_ids == (*b"1 + 1 = 2", EOS)
    assert (rival.text, rival.ends_trace, rival.verdict) == ("1 + 1 = 2", True, "correct")
    assert len(model.contexts) == 1


def test_a_swap_that_closes_the_step_is_not_continued():
    step = candidate("1 + 1 = 2\nX", hot=10)
    model = Model(other=b"\n", rest=b"never")
    (rival,) = model.maker()([step])
    assert bytes(rival.token_ids) == b"1 + 1 = 2\n\n"
    assert len(model.contexts) == 1


def test_why_there_is_none():
    def reason(model, step=None):
        (rival,) = model.maker()([step or candidate()])
        return rival

    assert reason(Model(finished=False, rest=b"3")) == NoCompetitor("unfinished")
    assert reason(Model(), candidate(entropy=None)) == NoCompetitor("no_entropy")
    same = candidate("2 = 1 + 1", hot=0)
    assert reason(Model(other=b" ", rest=b"2 = 1 + 1\n\n"), same) == NoCompetitor("equal")


@pytest.mark.parametrize("prefix", [b"so\n\n", b""])
@pytest.mark.parametrize("rest", [b"1 + 1 = 3\n\n", b"\n1 + 1 = 3\n\nmore"])
def test_delimiter_bytes_at_its_start_are_no_step(prefix, rest):
    step = candidate(hot=0, prefix=prefix.decode(), prefix_ids=tuple(prefix))
    (rival,) = Model(other=b"\n", rest=rest).maker()([step])
    assert bytes(rival.token_ids) == b"\n" + rest.removesuffix(b"more")
    leads = prefix or rest.startswith(b"\n")  # one newline before any text is text
    assert rival.text == ("1 + 1 = 3" if leads else "\n1 + 1 = 3")
    assert rival.verdict == "wrong"


@pytest.mark.parametrize("other, rest", [(b"\n", b"\n\n"), (b"\n", (EOS,)), ((EOS,), None)])
def test_what_never_becomes_a_step_is_unfinished(other, rest):
    model = Model(other=other, rest=rest or ())
    assert model.maker()([candidate(hot=0)]) == [NoCompetitor("unfinished")]
    assert len(model.contexts) == (2 if rest else 1)  # nothing follows an EOS


@pytest.mark.parametrize("delimiter", ["\n\n", "\n", "€\n", "é", "aba", "\r\n\r\n"])
def test_steps_behind_a_prefix_are_cut_as_those_of_the_whole(delimiter, monkeypatch):
    """Delimiters and characters are cut over tokens, also where the prefix ends; some prefixes are not the text of their tokens."""
    rng = random.Random(0)
    data, euro = delimiter.encode(), "€".encode()
    cut = [data[:1], data[1:], data[:-1], data[-1:], b"x" + data + b"y", b"x" + data[:1], data[-1:] + b"x"]
    vocabulary = [b"x", b"x ", b"yz", euro[:1], euro[1:], euro, b"\xa9", data, *cut, b"", b""]
    eos = len(vocabulary) - 1
    chances = [4] * 3 + [1] * (eos - 3) + [0.3]

    def some(most):
        return tuple(rng.choices(range(eos + 1), chances, k=rng.randint(1, most)))

    asked = []
    for _ in range(50):
        ids = some(40)
        text, steps, _ = segment(ids, vocabulary, delimiter)
        for before, step in zip((None, *steps), steps):
            own = ids[step.token_start : step.token_end]
            for end in (step.start, rng.randint(before.start + 1 if before else 0, len(text))):
                fields = {"prefix": text[:end], "prefix_ids": ids[: step.token_start], "token_ids": own}
                hot = tuple(rng.random() for _ in own)
                asked.append(candidate(step.text, **fields, entropy=hot, other_ids=some(1) * len(own)))
    said = [(some(8), rng.random() < 0.5) for _ in asked]
    maker = GreedyCompetitors(
        token_bytes=vocabulary,
        eos_ids=frozenset({eos}),
        complete=lambda contexts: said[: len(contexts)],
        verifier=StatedEquations(),
        delimiter=delimiter,
    )
    found = maker(asked), maker(asked, "token")
    assert sum(isinstance(rival, Rival) for rival in found[0]) > len(asked) / 3
    assert sum(len(maker._tail(c).ids) < len(c.prefix_ids) for c in asked) > len(asked) / 4
    monkeypatch.setattr(competitors, "resume", lambda *_: 0)
    assert all(maker._tail(c).ids == c.prefix_ids for c in asked)
    assert (maker(asked), maker(asked, "token")) == found


def test_the_swapped_token_alone():
    config = PairConfig(kinds=("low_confidence_correct",), competitor="token", tau=0.5)
    pairs, _ = select_pairs([candidate()], config, competitors=Model().maker())
    assert [bytes(p.rejected_ids) for p in pairs] == [b"1 + 1 = 3"]
    assert pairs[0].rejected_verdict == "unknown"


def test_only_verified_wrong_competitors_are_kept():
    config = PairConfig(kinds=("low_confidence_correct",), tau=0.5)
    pairs, counts = select_pairs([candidate()], config, competitors=Model().maker())
    assert [(p.chosen, p.rejected) for p in pairs] == [("1 + 1 = 2", "1 + 1 = 3")]
    pairs, counts = select_pairs(
        [candidate(hot=4)], config, competitors=Model(other=b"0", rest=b" = 1\n\n").maker()
    )
    assert not pairs
    assert counts["competitor_correct"] == 1
    pairs, counts = select_pairs([candidate(hot=0)], config, competitors=Model(other=b"x").maker())
    assert not pairs
    assert counts["competitor_unknown"] == 1


def test_what_the_step_variant_needs():
    maker = GreedyCompetitors(token_bytes=VOCABULARY, eos_ids=frozenset())
    with pytest.raises(UserError, match="needs complete="):
        maker([candidate()], "step")
