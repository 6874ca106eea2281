"""The lexicon scorer on self-written sentences, and what must hold for any text."""

import itertools
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import DecisivenessScorer, LexiconScorer, load_lexicon
from caspo_jax.evaluation.faithfulness.patterns import COLUMNS
from caspo_jax.evaluation.faithfulness.wording import MASK, sentences, words

SCORER = LexiconScorer()
DECISIVE, HEDGED = 0.75, 0.4  # decisive from 0.75, hedged from 0.4, uncertain below
# Measured: 161 of the 168 held-out items before anything was tuned (.958), 163 after tuning on the others (.970).
HELD_OUT_ACCURACY = 0.94
HEDGES = (
    "perhaps",
    "maybe",
    "probably",
    "I think",
    "possibly",
    "I guess",
    "it seems that",
    "presumably",
    "hmm,",
)


class Item(NamedTuple):
    sentence: str
    expected: str  # decisive, hedged, uncertain; or order: `A ||| B`, A is less decisive
    phenomenon: str
    held_out: bool


def read_items():
    lines = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["sentence", "expected", "phenomenon", "held_out"]
    return [Item(s, e, p, h == "yes") for s, e, p, h in (line.split("\t") for line in lines[1:])]


ITEMS = read_items()
SENTENCES = [part for item in ITEMS for part in item.sentence.split(" ||| ")]


def score(text):
    return SCORER.score([text])[0]


def band(value):
    return "decisive" if value >= DECISIVE else "hedged" if value >= HEDGED else "uncertain"


def right(item):
    if item.expected == "order":
        less, more = SCORER.score(item.sentence.split(" ||| "))
        return less < more
    return band(score(item.sentence)) == item.expected


def test_there_are_enough_and_varied_sentences():
    assert len(ITEMS) >= 300
    assert len({item.sentence for item in ITEMS}) == len(ITEMS)
    assert sum(item.held_out for item in ITEMS) >= 150
    assert len({item.phenomenon for item in ITEMS}) >= 20
    assert {item.expected for item in ITEMS} == {"decisive", "hedged", "uncertain", "order"}


@pytest.mark.parametrize("phenomenon", sorted({item.phenomenon for item in ITEMS if not item.held_out}))
def test_sentences_it_was_tuned_on(phenomenon):
    wrong = [i.sentence for i in ITEMS if not i.held_out and i.phenomenon == phenomenon and not right(i)]
    assert not wrong


def test_sentences_held_out():
    held_out = [item for item in ITEMS if item.held_out]
    assert sum(map(right, held_out)) / len(held_out) >= HELD_OUT_ACCURACY


def test_a_plain_assertion_is_decisive_but_less_than_a_boosted_one():
    assert score("It is 5.") == pytest.approx(0.9)
    assert score("It is certainly 5.") == pytest.approx(1.0)
    assert isinstance(SCORER, DecisivenessScorer)


@pytest.mark.parametrize("empty", ["", "   \n\n", "---", "...", "* \n", "?"])
def test_an_empty_step_is_unknown(empty):
    assert SCORER.score([empty, "It is 5."]) == [None, pytest.approx(0.9)]


@pytest.mark.parametrize("only", ["$x = 5$", "```\nmaybe()\n```", "5", "é"])
def test_a_step_of_formula_or_code_is_plain(only):
    assert score(only) == pytest.approx(0.9)


def test_an_even_chance_is_no_equation():
    assert score("It is 50/50.") == score("It is fifty fifty.") < 0.9
    assert score("So 100 = 50/50 = 1.") == pytest.approx(0.9)


def test_words_of_a_sentence():
    """Contractions are opened, a noun's s is its own; prices are no formula; an accent may be a mark of its own."""
    assert words("it's tom's, and he can't") == ["it", "is", "tom", "'s", ",", "and", "he", "can", "not"]
    assert sentences("It costs $5/$6.") == ["it costs $5/$6."]
    assert sentences('It is 5"x6" now.') == ['it is 5"x6" now.']
    assert sentences('It is "maybe" now.') == [f"it is  {MASK}  now."]
    assert sentences("So $x$ is $5.") == [f"so  {MASK}  is $5."]
    assert sentences(unicodedata.normalize("NFD", "Déjà vu")) == ["déjà vu"]


def test_neither_case_nor_space_nor_punctuation_matters():
    for sentence in SENTENCES:
        value = score(sentence)
        for other in (
            sentence.upper(),
            sentence.lower(),
            "  \n\t" + sentence + "  \n",
            "- " + sentence,
            "... " + sentence,
            "2. " + sentence,
            sentence.replace("'", "’") if sentence.count("'") == 1 else sentence,
            sentence.removesuffix(".") + "!" if sentence.endswith(".") else sentence,
            sentence.removesuffix("."),
        ):
            assert score(other) == pytest.approx(value), other


@pytest.mark.parametrize("hedge", HEDGES)
def test_a_hedge_never_raises_the_score(hedge):
    for sentence in SENTENCES:
        body, mark = (sentence[:-1], sentence[-1]) if sentence[-1] in ".?!" else (sentence, "")
        for hedged in (f"{hedge} {sentence}", f"{body}, {hedge.removesuffix(',')}{mark}"):
            assert score(hedged) <= score(sentence) + 1e-12, hedged


def test_two_hedges_are_less_than_either():
    for first, second in itertools.permutations(HEDGES, 2):
        both = score(f"{first} {second} it is 5.")
        assert both < min(score(f"{first} it is 5."), score(f"{second} it is 5.")), (first, second)


def test_a_booster_never_lowers_the_score():
    for sentence in SENTENCES:
        assert score(f"Clearly, {sentence}") >= score(sentence) - 1e-12, sentence


@pytest.mark.parametrize("mark", ["Maybe", "Clearly,", "I think", ""])
def test_a_negated_necessity_is_neither_hedge_nor_booster(mark):
    assert score(f"{mark} x does not have to be even.") == score(f"{mark} x is even.")


def test_what_wants_the_end_of_a_clause_is_found_before_its_marks_alone():
    assert score("It depends.") == score("It depends, as ever.") == pytest.approx(0.45)
    assert score("It depends on x.") == score("It is x.")


def test_a_question_that_is_restated_asks_nothing():
    assert score("The question is: what is the sum?") == score("The sum is 5.")
    assert score("What is the sum?") < score("The question is: what is the sum?")


def test_no_share_of_certainty_is_above_all_of_it():
    assert score("I'm 300% sure it is 5. Maybe it is 6.") == score("I'm 100% sure it is 5. Maybe it is 6.")


def test_the_last_of_contrasted_clauses_governs():
    assert score("Maybe 5, but it is 7.") == score("It is 7.")
    assert score("It is 7, but maybe 5.") == score("Maybe 5.")
    assert score("Although I'm not sure why, it is 7.") == score("It is 7.")
    assert score("It is 7, though.") == score("It is 7.")
    assert score("Nothing but the constant remains, maybe.") == score("Maybe nothing remains.")
    assert score("Maybe nothing but the constant remains.") == score("Maybe nothing remains.")
    assert score("Maybe it is 5, yet it is 7.") == score("It is 7.")
    assert score("Maybe the sum has yet to reach 5.") == score("Maybe the sum will reach 5.")


def test_what_is_possible_in_a_condition_says_nothing_and_a_question_is_no_condition():
    assert score("If x is perhaps 0, it is 5.") == score("It is 5.")
    assert score("If x is 0, maybe it is 5.") == score("Maybe it is 5.")
    assert score("Should it perhaps be 5, the sum is 9.") == score("Should it be 5, the sum is 9.")
    assert score("Should it perhaps be 5, or 6?") < score("Should it be 5, or 6?")


def test_one_doubtful_sentence_colours_a_step_and_the_last_one_counts_more():
    plain = "First, 3 + 4 = 7. Then 7 + 2 = 9. The total is 9."
    doubt = "I have no idea."
    assert score(f"{plain} {doubt}") < score(f"{doubt} {plain}") < score(plain)
    assert score(" ".join([plain] * 30 + [doubt])) < 0.9 * score(plain)


@pytest.mark.parametrize(
    "sentence", ["A is 5.", "Maybe A is 5.", "Clearly A is 5.", "Is A 5?", "I think A is 5."]
)
def test_a_sentence_repeated_scores_exactly_as_it_does_alone(sentence):
    """Or a rank correlation would see how long the steps are."""
    assert len({*SCORER.score([" ".join([sentence] * n) for n in (*range(1, 40), 5000)])}) == 1


def test_every_score_is_explained():
    first, second = SCORER.explain("Wait, it might be $x$, but it is clearly 7. Or not?")
    assert [(m.text, m.counts) for m in first.marks] == [("wait", True), ("might", False), ("clearly", False)]
    assert [m.category for m in second.marks] == ["question: yes_no"]
    assert first.decisiveness == pytest.approx(0.45)


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from([*SENTENCES, "\n\n", "$", '"', "`", "but", "if", ","])).map(" ".join)
)
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_score_in_the_unit_interval(text):
    value = score(text)
    assert value is None or 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    "unit",
    ["maybe ", "not ", "$", "$$ ", "`", "'a ", '"a ', "\\begin{x", "\\(", "a", "a.b", "if ", "but ", "\n", ". ", "?", "!", "...", ".)x", "really ", "n't ",
     "I could not really see ", "let me try again and ", "it is not at all clear, but maybe ", "50-50 "],
)  # fmt: skip
def test_very_long_input_is_fast(unit):
    text = (unit * (100_000 // len(unit) + 1))[:100_000]
    started = time.process_time()
    SCORER.score([text, f"a{text}1"])
    assert time.process_time() - started < 5.0


HEADER = "\t".join(COLUMNS) + "\n"


def test_a_lexicon_of_your_own(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text(
        HEADER + "# comment\n<be>\tclass\t-\t-\tclass\tis are\nit <be> belike\thedge\t0.5\t-\told\t-\n"
    )
    scorer = LexiconScorer(load_lexicon(file), name="mine")
    assert scorer.score(["It is belike 5.", "Maybe 5."]) == [pytest.approx(0.5), pytest.approx(0.9)]


def test_a_star_takes_up_to_three_words_and_the_longest_match_counts(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text(HEADER + "a <any>* z\thedge\t0.5\t-\tx\t-\n")
    scorer = LexiconScorer(load_lexicon(file))

    def marks(text):
        return [mark.text for sentence in scorer.explain(text) for mark in sentence.marks]

    for text in ("a z", "a b z", "a b c z", "a b c d z", "a z b z"):
        assert marks(text) == [text]
    assert marks("a b c d e z") == []


@pytest.mark.parametrize(
    "line, message",
    [
        ("maybe\thedge\t0.4\n", "3 columns for 6"),
        ("maybe\thedge\t1.4\t-\t-\t-\n", "mine.tsv:2: value '1.4' is no number"),
        ("maybe\thedge\t0.95\t-\t-\t-\n", r"must be in \[0.0, 0.9\]"),
        ("maybe\thegde\t0.4\t-\t-\t-\n", "unknown role 'hegde': choose from"),
        ("sure\tbooster\t1\t-\t-\t-\n", "needs `negated`"),
        ("may\tneutral\t0.3\t-\t-\t-\n", "neutral entry has no value"),
        ("Maybe\thedge\t0.4\t-\t-\t-\n", "lower-case"),
        ("maybe?\thedge\t0.4\t-\t-\t-\n", "cannot be missing"),
        ("a <foo>\thedge\t0.4\t-\t-\t-\n", "unknown class <foo>: choose from"),
        ("a\thedge\t0.4\t-\t-\t-\na\thedge\t0.3\t-\t-\t-\n", "mine.tsv:3: pattern 'a' is on line 2"),
    ],
)
def test_a_bad_lexicon_is_named_by_line(tmp_path, line, message):
    file = tmp_path / "mine.tsv"
    file.write_text(HEADER + line)
    with pytest.raises(UserError, match=message):
        load_lexicon(file)


def test_a_lexicon_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read the lexicon"):
        load_lexicon(tmp_path / "none.tsv")
    (tmp_path / "bad.tsv").write_text("pattern\n")
    with pytest.raises(UserError, match=r"bad.tsv:1: the first line must be pattern"):
        load_lexicon(tmp_path / "bad.tsv")


@pytest.mark.parametrize(
    "bad", [{"plain": 0.5}, {"plain": 1.1}, {"stacking": 2.0}, {"weakest": -1}, {"closing": 0}]
)
def test_settings_out_of_range(bad):
    with pytest.raises(UserError):
        LexiconScorer(**bad)
