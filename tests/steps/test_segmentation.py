"""Segmentation against a direct reading of the definition in docs/design.md, section 2."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.steps import segment, segment_text

TOKENS = [
    b"a",
    b"\n",
    b"\n\n",
    b".\n\nSo",
    b"\n\nb\n\nc",
    b"b\n",
    b"\nc",
    b"\xe2\x82",
    b"\xac",
    b"\xf0\x9f",
    b" x",
    b"",
]
EOS = len(TOKENS) - 1


def reference(ids, delimiter=b"\n\n"):
    """Spans of bytes between cuts; each token goes to the span that holds its first byte."""
    data = b"".join(TOKENS[i] for i in ids)
    cuts, at = [], 0
    while (found := data.find(delimiter, at)) >= 0:
        stop = found + len(delimiter)
        while data[stop : stop + 1] == delimiter[:1]:
            stop += 1
        cuts.append((found, stop))
        at = stop
    content = [(a, b) for a, b in zip([0] + [c[1] for c in cuts], [c[0] for c in cuts] + [len(data)])]
    offset, owner = 0, []
    for i in ids:
        inside = [k for k, (a, b) in enumerate(content) if a <= offset < b and TOKENS[i]]
        owner.append(inside[0] if inside else None)
        offset += len(TOKENS[i])
    steps = sorted({k for k in owner if k is not None})
    starts = [owner.index(k) for k in steps]
    bounds = [0, *starts[1:], len(ids)]
    return [(bounds[n], bounds[n + 1], data[slice(*content[k])]) for n, k in enumerate(steps)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, EOS), max_size=14))
def test_tokens_and_characters_follow_the_definition(ids):
    text, steps, counted = segment(ids, TOKENS)
    data = b"".join(TOKENS[i] for i in ids)
    assert text == data.decode("utf-8", "replace")
    assert [(s.token_start, s.token_end, s.text) for s in steps] == [
        (a, b, t.decode("utf-8", "replace")) for a, b, t in reference(ids)
    ]
    for step in steps:
        assert text[step.start : step.end] == step.text != ""
    assert len(counted) == len(ids)
    for i, token in enumerate(ids):
        if TOKENS[token] and not TOKENS[token].strip(b"\n") and counted[i]:
            step = next(s for s in steps if s.token_start <= i < s.token_end)
            assert "\n" in step.text  # a newline that is text, no delimiter


def test_character_cut_over_tokens_and_steps():
    text, steps, _ = segment([7, 8, 2, 9, 2, 0], TOKENS)
    assert text == "€\n\n�\n\na"
    assert [s.text for s in steps] == ["€", "�", "a"]
    assert [(s.token_start, s.token_end) for s in steps] == [(0, 3), (3, 5), (5, 6)]


def test_text_alone_agrees_with_one_token_a_byte():
    text = "\n\nHé\n\n\n\nb\n\n  \n\nlast\n"
    each = [bytes([b]) for b in range(256)]
    _, steps, _ = segment(list(text.encode()), each)
    assert [(s.start, s.end, s.text) for s in segment_text(text)] == [(s.start, s.end, s.text) for s in steps]
    assert [s.text for s in segment_text(text)] == ["Hé", "b", "  ", "last\n"]
    assert [s.text for s in segment_text("a;b;;c", ";")] == ["a", "b", "c"]
    assert segment_text("") == ()


def test_bad_input():
    with pytest.raises(UserError, match=r"token_ids\[1\] = 99"):
        segment([0, 99], TOKENS)
    with pytest.raises(UserError, match="step_delimiter is empty"):
        segment_text("a", "")
    with pytest.raises(UserError, match=r"token_bytes is a object: give the bytes of every id"):
        segment([0], object())
