"""Token spans on text, against Python's own decoding."""

import hypothesis.strategies as st
from hypothesis import given, settings

from caspo_jax.evaluation.report.align import CONTINUES, token_lengths, utf16_length
from tests.evaluation.report.records import tokenizer


def units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_utf16_length_is_that_of_the_encoding(text):
    assert utf16_length(text) == units(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=4)))
def test_any_bytes_decode_as_a_whole_and_lengths_cover_them(pieces):
    text, lengths = token_lengths(range(len(pieces)), pieces)
    assert text == b"".join(pieces).decode("utf-8", "replace")
    assert len(lengths) == len(pieces)
    assert sum(n for n in lengths if n != CONTINUES) == units(text)
    assert lengths[:1] != [CONTINUES]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3)), st.data())
def test_whole_characters_own_their_text_and_split_ones_are_joined(words, data):
    """Each word is cut into tokens anywhere, also inside a character; the cells between whole words stay its own."""
    pieces, words_of = [], []
    for number, word in enumerate(words):
        whole = word.encode()
        cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=3)))
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]
        pieces += parts
        words_of += [number] * len(parts)
    _, lengths = token_lengths(range(len(pieces)), pieces)
    for number, word in enumerate(words):
        owned = [n for n, w in zip(lengths, words_of) if w == number and n != CONTINUES]
        assert sum(owned) == units(word)
    for piece, length in zip(pieces, lengths):
        if not piece:
            assert length == 0


def test_a_special_token_inside_a_character_owns_nothing():
    text, lengths = token_lengths([0, 1, 2], [b"\xf0\x9f", b"", b"\xa4\x96"])
    assert (text, lengths) == ("🤖", [2, 0, CONTINUES])


def test_ids_beyond_the_vocabulary_spell_nothing():
    assert token_lengths([0, 9], [b"a"]) == ("a", [1, 0])


def test_a_real_tokenizer_spells_what_it_decodes():
    from caspo_jax.models import decode, token_bytes

    tok = tokenizer()
    sentence = "naïve 🤖 漢字 👩‍👩‍👧\n\nnext"
    ids = tok.encode(sentence, add_special_tokens=False)
    text, lengths = token_lengths(ids, token_bytes(tok, len(tok)))
    assert text == decode(tok, ids) == sentence
    assert CONTINUES in lengths  # this vocabulary has no token for the emoji: the case is met
