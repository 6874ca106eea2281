"""Thinking blocks to spans, and the interventions' files."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    INTERVENTIONS,
    count_thinking,
    load_intervention,
    thinking_steps,
    with_intervention,
)
from caspo_jax.types import Question


def texts(text, **options):
    return thinking_steps(text, **options).texts(text)


def test_paragraphs_of_a_block():
    text = "Hi <think>\nOne é 🙂.\n\n\n\n  Two,\nstill two. \n\n \n\nThree</think>\n\nAnswer: 3"
    found = thinking_steps(text)
    assert found.texts(text) == ["One é 🙂.", "Two,\nstill two.", "Three"]
    assert found.status == "closed"
    assert not found.giant
    assert [text[start:end] for start, end in found.steps] == found.texts(text)


@pytest.mark.parametrize(
    "text, options, steps, status",
    [
        ("a\n\nb</think> c", {}, ["a", "b"], "closed"),  # the prompt opened the block
        ("a\n\nb</think> c", {"opened": True}, ["a", "b"], "closed"),
        ("<think>a\n\nb", {}, ["a", "b"], "unclosed"),
        ("a\n\nb", {"opened": True}, ["a", "b"], "unclosed"),
        ("<think>a</think>b", {"opened": True}, ["a"], "closed"),
        (" \n<think>a</think>b", {"opened": True}, ["a"], "closed"),
        ("a\n\nb <think> c</think> d", {"opened": True}, ["a", "b <think> c"], "closed"),
        ("a\n\nb <think> c", {"opened": True}, ["a", "b <think> c"], "unclosed"),
        ("a\n\nb <think> c</think> d", {}, ["c"], "closed"),
        ("a\n\nb", {}, [], "none"),
        ("a\n\nb", {"whole_text": True}, ["a", "b"], "none"),
        ("<think>\n\n</think>a", {}, [], "none"),
        ("<think>\n\n</think>\n\na\n\nb", {"whole_text": True}, ["a", "b"], "none"),
        ("a <think> </think> b</think>", {"whole_text": True}, ["a", "b"], "none"),
        ("<think> ", {}, [], "none"),
        ("<think>a</think>x<think>b\n\nc</think>y", {}, ["a", "b", "c"], "closed"),
        ("<think>a</think>x<think>b", {}, ["a", "b"], "unclosed"),
        ("<think>a <think> b</think>", {}, ["a <think> b"], "closed"),
        ("</think>a", {}, [], "none"),
        ("", {}, [], "none"),
        ("", {"opened": True}, [], "none"),
        ("<think>a;;b</think>", {"delimiter": ";;"}, ["a", "b"], "closed"),
    ],
)
def test_blocks(text, options, steps, status):
    found = thinking_steps(text, **options)
    assert found.texts(text) == steps
    assert found.status == status


def test_a_giant_paragraph_is_cut_at_its_lines_and_counted():
    lines = "<think>" + "\n".join(["word " * 20] * 5) + "</think>"
    found = thinking_steps(lines, giant=200)
    assert found.giant
    assert len(found.steps) == 5
    assert len(thinking_steps(lines, giant=200, split_giant=False).steps) == 1
    assert not thinking_steps(lines).giant
    length = len(lines.strip()) - len("<think></think> ")  # without the space before the tag
    assert [thinking_steps(lines, giant=length + more).giant for more in (-1, 0)] == [True, False]
    bare = thinking_steps("<think>" + "word " * 500 + "</think>")
    assert bare.giant
    assert len(bare.steps) == 1
    assert not thinking_steps("<think>" + "word " * 500 + "\n\nb</think>").giant


def test_counts():
    found = [thinking_steps(t) for t in ("<think>a\n\nb</think>", "a", "<think>a", "<think>" + "x" * 3000)]
    counts = count_thinking(found)
    assert (counts.texts, counts.no_thinking, counts.unclosed, counts.giant, counts.steps) == (4, 1, 2, 1, 4)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "\n", "\n\n", "a", "é🙂", " ", "\ud800", "."])).map(
        "".join
    ),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_spans_are_ordered_tight_and_inside_blocks(text, opened, whole_text):
    found = thinking_steps(text, opened=opened, whole_text=whole_text)
    position = 0
    for start, end in found.steps:
        assert position <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert any(block.start <= start and end <= block.end for block in found.blocks)
        position = end
    kept = "".join("".join(found.texts(text)).split())
    inside = "".join("".join(text[a:b] for a, b in found.blocks).split())
    assert kept == inside


def test_bad_settings():
    with pytest.raises(UserError, match="giant=0"):
        thinking_steps("a", giant=0)
    with pytest.raises(UserError, match="delimiter"):
        thinking_steps("<think>a</think>", delimiter="")


def test_nine_interventions():
    assert len(INTERVENTIONS) == 9
    found = {name: load_intervention(name) for name in INTERVENTIONS}
    assert found["blank"] == ""
    assert len(set(found.values())) == 9
    for name, text in found.items():
        assert "<!--" not in text
        assert name == "blank" or len(text) > 40
    assert load_intervention("Hedge-Scale") == found["hedge_scale"]
    with pytest.raises(UserError, match=r"no intervention 'humble': choose from blank, basic, .*hedge_scale"):
        load_intervention("humble")


class Template:
    """A tokenizer whose chat template has a system message, has none, or refuses one."""

    chat_template = "there is one"

    def __init__(self, system):
        self.system = system

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        import jinja2

        if messages[0]["role"] == "system" and self.system == "refused":
            raise jinja2.TemplateError("System role not supported")
        kept = [m for m in messages if m["role"] == "user" or self.system == "kept"]
        return "".join(f"<{m['role']}>{m['content']}" for m in kept) + "<assistant>"


def test_a_question_under_an_intervention():
    question = Question("q", question="1 + 1?", gold="2")
    text = load_intervention("basic")
    assert with_intervention(question, "blank", Template("kept")) is question
    asked = with_intervention(question, "basic", Template("kept"))
    assert (asked.question, asked.gold) == ("1 + 1?", "2")
    assert asked.prompt == f"<system>{text}<user>1 + 1?<assistant>"
    for system in ("dropped", "refused"):
        assert (
            with_intervention(question, "basic", Template(system)).prompt
            == f"<user>{text}\n\n1 + 1?<assistant>"
        )
    plain = Template("kept")
    plain.chat_template = None
    assert with_intervention(question, "basic", plain).prompt == f"{text}\n\n1 + 1?"
    with pytest.raises(UserError, match="needs a question"):
        with_intervention(Question("q", prompt_ids=(1,)), "basic", plain)
