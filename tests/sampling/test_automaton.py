"""Steps on tokens: hand-made cases, the machine against regular expressions, device tables against the host."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import VOCABULARY
from tree_reference import delimiters, newest_step

from caspo_jax.errors import UserError
from caspo_jax.sampling import build_automaton, segment_tokens
from caspo_jax.sampling.cursor import advance, counted_mask, cursor_init, next_step
from caspo_jax.sampling.segments import character_spans, first_stop, resume, segment_bytes, token_text

CASES = [
    # tokens, delimiter, [(token_start, token_end, counted)]
    (["a", "b", "\n\n", "c"], "\n\n", [(0, 3, "110"), (3, 4, "1")]),
    (["a", "\n", "\n", "c"], "\n\n", [(0, 3, "100"), (3, 4, "1")]),
    (["a.\n\nSo", "b"], "\n\n", [(0, 1, "1"), (1, 2, "1")]),
    (["a", ".\n\n", "b"], "\n\n", [(0, 2, "11"), (2, 3, "1")]),
    (["a", "\n\nSo", "b"], "\n\n", [(0, 2, "11"), (2, 3, "1")]),
    (["a", "\n\n", "\n", "\n\n", "b"], "\n\n", [(0, 4, "1000"), (4, 5, "1")]),
    (["a", "\n\n", "\nb", "c"], "\n\n", [(0, 3, "100"), (3, 4, "1")]),  # a token that starts inside the run
    (["a", "\n", "b"], "\n\n", [(0, 3, "111")]),
    (["a", "\n\n", ""], "\n\n", [(0, 3, "100")]),  # EOS alone is no step
    (["a", "\n\n", "b", ""], "\n\n", [(0, 2, "10"), (2, 4, "11")]),
    ([""], "\n\n", []),
    (["\n\n", "a"], "\n\n", [(0, 2, "01")]),  # nothing before the first delimiter
    (["x\n\ny\n\nz", "b"], "\n\n", [(0, 1, "1"), (1, 2, "1")]),  # one step a token
    (["x\n\ny", "\n\n", "b"], "\n\n", [(0, 2, "10"), (2, 3, "1")]),  # y has no token of its own
    (["a", "ab", "ab", "c"], "ab", [(0, 3, "100"), (3, 4, "1")]),  # a run repeats the whole delimiter
    (["c", "ab", "a", "c"], "ab", [(0, 2, "10"), (2, 4, "11")]),
    (["c", "ab", "a", "b", "c"], "ab", [(0, 4, "1000"), (4, 5, "1")]),
    (["a", "\r\n\r\n", "\r\n", "c"], "\r\n\r\n", [(0, 3, "100"), (3, 4, "1")]),  # newlines of two bytes
    (["a", "\n\nb\n\n", "c"], "\n\n", [(0, 2, "11"), (2, 3, "1")]),  # two delimiters are no pure one
    (
        ["\n\nb\n\n", "c"],
        "\n\n",
        [(0, 2, "01")],
    ),  # b has no token of its own: the first delimiter closes nothing
    (["a", "\n"], "\n\n", [(0, 2, "11")]),  # half a delimiter is none
]


@pytest.mark.parametrize("tokens, delimiter, expected", CASES)
def test_steps_by_hand(tokens, delimiter, expected):
    vocabulary = [t.encode() for t in tokens]
    got = segment_tokens(vocabulary, range(len(tokens)), delimiter)
    assert [(a, b, "".join(str(int(c)) for c in mask)) for a, b, mask in got] == expected


@pytest.mark.parametrize("delimiter", ["\n\n", ".\n\n", "\n", "ab", "aba", "a\na\n", "\n\nb", "aaba"])
def test_segments_against_regular_expressions(delimiter):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(VOCABULARY), rng.integers(1, 14)).tolist()
        pieces = [VOCABULARY[i] for i in ids]
        expected = []  # counted tokens of each step, read token by token
        for end in range(1, len(pieces) + 1):
            closes, counted = newest_step(pieces[:end], delimiter.encode())
            if closes or (end == len(pieces) and counted):
                expected.append(counted)
        got = segment_bytes(VOCABULARY, ids, delimiter)
        assert [(np.flatnonzero(s.counted) + s.token_start).tolist() for s in got] == expected
        if got:  # the steps tile the tokens
            assert [s.token_start for s in got] == [0, *(s.token_end for s in got[:-1])]
            assert got[-1].token_end == len(ids)


@pytest.mark.parametrize("delimiter", ["\n\n", "\n", "€\n", "é", "aba", "\r\n\r\n"])
def test_tokens_far_from_delimiters_are_passed_over(delimiter):
    """Most tokens hold none of the delimiter's bytes; it, and characters, may be cut over tokens."""
    rng = np.random.default_rng(4)
    data = delimiter.encode()
    plain = [b"x", b"yz", "日".encode()[:2], "日".encode()[2:], b""]
    others = [
        data,
        data[:1],
        data[1:],
        data[:-1],
        b"x" + data + b"x",
        b"x" + data[:1],
        data[-1:] + b"x",
        b".",
    ]
    vocabulary = [*plain, *others, "…".encode()]  # which begins as the euro sign does
    chances = [0.7 / len(plain)] * len(plain) + [0.3 / 9] * 9
    steps = resumed = 0
    for _ in range(60):
        pieces = [vocabulary[i] for i in rng.choice(len(vocabulary), 40, p=chances)]
        expected = []  # counted tokens of each step, read token by token
        for end in range(1, len(pieces) + 1):
            closes, counted = newest_step(pieces[:end], data)
            if closes or (end == len(pieces) and counted):
                expected.append(counted)
        got = segment_bytes(pieces, range(len(pieces)), delimiter)
        assert [(np.flatnonzero(s.counted) + s.token_start).tolist() for s in got] == expected
        text, found = b"".join(pieces), delimiters(b"".join(pieces), data)
        edges = [*zip([0, *(f[2] for f in found)], [*(f[0] for f in found), len(text)])]
        assert {(s.byte_start, s.byte_end) for s in got} <= set(edges)
        known = int(rng.integers(0, len(pieces) + 1))
        start = resume(pieces, range(known), delimiter)
        if start:  # all but the first of these are steps of the whole
            byte = sum(map(len, pieces[:start]))
            halves = [part.decode("utf-8", "replace") for part in (text[:byte], text[byte:])]
            assert "".join(halves) == text.decode("utf-8", "replace")
            rest = segment_bytes(pieces, range(start, len(pieces)), delimiter)
            behind = got[len(got) - len(rest) + 1 :]
            assert [(s.token_start - start, s.byte_start - byte) for s in behind] == [
                (s.token_start, s.byte_start) for s in rest[1:]
            ]
            assert all(s.token_start <= start for s in got[: len(got) - len(rest) + 1])
            counted = [np.concatenate([s.counted for s in found]) for found in (got, rest)]
            assert (counted[0][start:] == counted[1]).all()
            resumed += 1
        steps += len(got)
    assert steps > 100
    assert resumed > 30


@functools.partial(jax.jit, static_argnums=2)
def _closings(automaton, token, columns):
    """What the loop would see on rows of tokens [R, T]: closed [T, R], counted [T, R, T], stop and EOS [T, R]."""

    def body(carry, column):
        cursor, byte_start = carry
        byte_start = byte_start.at[:, column].set(cursor.position)
        cursor, reading = advance(automaton, cursor, token[:, column], column)
        counted = counted_mask(cursor, reading, byte_start, column, jnp.arange(columns))
        return (next_step(cursor, reading.closes), byte_start), (
            reading.closes,
            counted,
            reading.stop,
            reading.eos,
        )

    start = (cursor_init(token.shape[:1]), jnp.zeros(token.shape, jnp.int32))
    return jax.lax.scan(body, start, jnp.arange(columns))[1]


@pytest.mark.parametrize(
    "delimiter, stops",
    [
        ("\n\n", ["aa"]),
        ("ab", ["a\n", "\n\nb", "ab\n"]),
        ("abab", []),
        ("\n\nb", []),  # after a third newline two are still matched
        ("\n", ["a.\n", "."]),  # one inside another
    ],
)
def test_device_tables_against_the_host(delimiter, stops):
    eos = len(VOCABULARY) - 1
    automaton = build_automaton(VOCABULARY, delimiter, stops, [eos])
    rows, columns = 200, 12
    token = np.random.default_rng(1).integers(0, len(VOCABULARY), (rows, columns))
    closes, counted, stop, is_eos = map(
        np.asarray, _closings(automaton, jnp.asarray(token, jnp.int32), columns)
    )
    assert (is_eos == (eos == token.T)).all()
    for r in range(rows):
        pieces = [VOCABULARY[i] for i in token[r]]
        for t in range(columns):
            expected, mask = newest_step(pieces[: t + 1], delimiter.encode())
            assert closes[t, r] == expected
            assert np.flatnonzero(counted[t, r]).tolist() == mask
            before, text = b"".join(pieces[:t]), b"".join(pieces[: t + 1])
            ends = (text[:k] for k in range(len(before) + 1, len(text) + 1))
            assert stop[t, r] == any(end.endswith(tuple(s.encode() for s in stops)) for end in ends)


def test_character_spans_with_multibyte_and_invalid_text():
    tokens = [
        "é".encode()[:1],
        "é".encode()[1:] + b"\n",
        b"\n",
        "日本".encode(),
        b"\xff",
        b"\n\n",
        b"z\n\n\n",
    ]
    text = b"".join(tokens).decode("utf-8", "replace")
    segments = segment_bytes(tokens, range(len(tokens)), "\n\n")
    spans = character_spans(b"".join(tokens), segments)
    assert [text[a:b] for a, b in spans] == ["é", "日本\ufffd", "z"]
    assert [(s.token_start, s.token_end) for s in segments] == [(0, 3), (3, 6), (6, 7)]


def test_the_first_stop_is_where_reading_token_by_token_ends():
    """Also where stop strings overlap, lie across tokens, or began among those that were there before."""
    rng = np.random.default_rng(3)
    found = set()
    for _ in range(600):
        stops = [str(s) for s in rng.choice(["aa", ".\na", "\n\n", "a.\n", ".", "b"], 2, replace=False)]
        ids = rng.integers(0, len(VOCABULARY), rng.integers(1, 10)).tolist()
        begin = int(rng.integers(0, len(ids) + 1))
        expected = None
        for count in range(begin + 1, len(ids) + 1):
            before, text = (b"".join(VOCABULARY[i] for i in ids[:n]) for n in (count - 1, count))
            ends = (text[:k] for k in range(len(before) + 1, len(text) + 1))
            if any(end.endswith(tuple(s.encode() for s in stops)) for end in ends):
                expected = count
                break
        assert first_stop(VOCABULARY, ids, stops, begin) == expected, (ids, stops, begin)
        found.add(expected)
    assert len(found) > 6


def test_text_is_that_of_all_bytes_together():
    """A character may be cut between tokens; what is no UTF-8 is shown."""
    vocabulary = ["é".encode()[:1], "é".encode()[1:], b"", b"\xff", "日".encode()[:2]]
    assert token_text(vocabulary, [0, 2, 1, 3, 0, 1, 4]) == "é\ufffdé\ufffd"


def test_byte_spans_are_what_lies_between_delimiters():
    rng = np.random.default_rng(2)
    for _ in range(200):
        pieces = [VOCABULARY[i] for i in rng.integers(0, len(VOCABULARY), 12)]
        text = b"".join(pieces)
        found = delimiters(text, b"\n\n")
        edges = [(a, b) for a, b in zip([0, *(f[2] for f in found)], [*(f[0] for f in found), len(text)])]
        for segment in segment_bytes(pieces, range(12), "\n\n"):
            assert (segment.byte_start, segment.byte_end) in edges


def test_classes_stay_few_in_a_large_vocabulary():
    words = [f"w{i}".encode() for i in range(20_000)] + [b"\n", b"\n\n", b"x\n"]
    automaton = build_automaton(words, "\n\n", ["Final answer:"])
    assert automaton.next_state.shape[1] <= 6
    assert automaton.stop_next.shape[1] <= 2


@pytest.mark.parametrize(
    "arguments", [("",), ("\n", [""]), ("\n", [], [1, len(VOCABULARY)]), ("\n", [], [1, -1])]
)
def test_bad_input_is_named(arguments):
    with pytest.raises(UserError, match=rf"empty|EOS id ({len(VOCABULARY)}|-1) "):
        build_automaton(VOCABULARY, *arguments)
