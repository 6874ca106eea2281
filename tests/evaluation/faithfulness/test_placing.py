"""Steps on tokens: the same paragraphs as on text, for any cut of the text into tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.evaluation.faithfulness import place_steps, thinking_steps
from caspo_jax.evaluation.faithfulness.placing import spelled_tags
from caspo_jax.steps import segment

PIECES = ["<think>", "</think>", "\n", "\n\n", "a", "é🙂", " ", "So", ".", "x = 2"]


def cut(data, cuts):
    """Bytes cut at the given places: a private vocabulary, one token a piece, and an EOS that spells nothing."""
    places = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    return [*pieces, b""], list(range(len(pieces) + 1))


@given(
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.lists(st.integers(0, 200)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_for_any_tokens(text, cuts, opened, whole):
    vocabulary, ids = cut(text.encode(), cuts)
    found_text, found, steps, counted = place_steps(ids, vocabulary, opened=opened, whole_text=whole)
    assert found_text == text
    assert found == thinking_steps(text, opened=opened, whole_text=whole)
    starts = np.cumsum([0, *map(len, vocabulary)])
    spans = {(span.start, span.end) for span in found.steps}
    last = 0
    for step in steps:
        assert (step.start, step.end) in spans
        assert text[step.start : step.end] == step.text == step.text.strip() != ""
        assert last <= step.token_start < step.token_end <= len(ids)
        last = step.token_end
    # A token belongs to the step that holds its first byte: so a step that no token begins in is none.
    for start, end in spans - {(s.start, s.end) for s in steps}:
        first, stop = len(text[:start].encode()), len(text[:end].encode())
        assert not any(first < starts[t] < stop for t in ids if vocabulary[t])
    owned = np.zeros(len(ids), bool)
    for step in steps:
        owned[step.token_start : step.token_end] = True
        first, stop = len(text[: step.start].encode()), len(text[: step.end].encode())
        for t in ids:
            if vocabulary[t] and first <= starts[t] < stop:
                assert step.token_start <= t < step.token_end
                assert counted[t]
    assert not counted[~owned].any()


@given(
    st.lists(st.sampled_from(["\n\n", "a", "é", "So", ".", "x = 2"])).map("".join),
    st.lists(st.integers(0, 99)),
)
@settings(max_examples=150, deadline=None)
def test_without_thinking_it_is_the_librarys_segmentation(text, cuts):
    vocabulary, ids = cut(text.encode(), cuts)
    _, _, steps, counted = place_steps(ids, vocabulary, whole_text=True)
    _, want, want_counted = segment(ids, vocabulary)
    spans = [(s.token_start, s.token_end) for s in steps]
    assert spans == [(s.token_start, s.token_end) for s in want if s.text.strip()]
    for start, end in spans:
        np.testing.assert_array_equal(counted[start:end], want_counted[start:end])


def test_tokens_that_span_a_boundary():
    vocabulary = [b"<th", b"ink>\nOne", b" is", b".\n\nTwo", b" more", b"</th", b"ink>", b" done", b""]
    text, found, steps, counted = place_steps(range(9), vocabulary)
    assert found.status == "closed"
    # `ink>\nOne` begins in the tag: it is no step's. `.\n\nTwo` belongs to the step that it closes.
    assert [(s.text, s.token_start, s.token_end) for s in steps] == [("One is.", 2, 4), ("Two more", 4, 5)]
    assert np.flatnonzero(counted).tolist() == [2, 3, 4]
    assert text.endswith("</think> done")


def test_the_tags_of_an_empty_block_are_no_steps():
    """As Qwen3 answers where thinking is off: the tags would be two sure and decisive steps of every trace."""
    vocabulary = [b"<think>", b"\n\n", b"</think>", b"So", b" it is 5.", b"Or", b" 6?", b""]
    ids = [0, 1, 2, 1, 3, 4, 1, 5, 6, 7]
    text, found, steps, counted = place_steps(ids, vocabulary, whole_text=True)
    assert found.status == "none"
    assert [(s.text, s.token_start, s.token_end) for s in steps] == [("So it is 5.", 3, 7), ("Or 6?", 7, 10)]
    assert np.flatnonzero(counted).tolist() == [4, 5, 7, 8, 9]  # the EOS is the last step's, as without tags
    assert all(text[s.start : s.end] == s.text for s in steps)


def test_a_giant_paragraph_and_bytes_that_are_no_text():
    line = "word " * 120
    vocabulary = [b"<think>", *[f"{line}{i}\n".encode() for i in range(5)], b"</think>\xff"]
    _, found, steps, _ = place_steps(range(7), vocabulary)
    assert found.giant
    assert [s.token_start for s in steps] == [1, 2, 3, 4, 5]
    whole = place_steps(range(7), vocabulary, split_giant=False)[2]
    assert [(s.token_start, s.token_end) for s in whole] == [(1, 6)]
    broken = [b"\xf0\x9f", b"<think>", b"a\xe2\x82", b"\n\n", b"b", b"</think>"]
    text, _, steps, _ = place_steps(range(6), broken)
    assert [s.text for s in steps] == ["a\ufffd", "b"]
    assert all(text[s.start : s.end] == s.text for s in steps)


def test_special_tags_are_spelled():
    class Tokenizer:
        def get_vocab(self):
            return {"<think>": 1, "</think>": 2, "a": 0}

    assert spelled_tags(Tokenizer(), [b"a", b"", b""]) == [b"a", b"<think>", b"</think>"]


def test_nothing():
    text, found, steps, counted = place_steps([], [b"a"])
    assert (text, found.status, steps, counted.size) == ("", "none", (), 0)
    assert place_steps([0], [b"a"])[2] == ()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        place_steps([3], [b"a"])
