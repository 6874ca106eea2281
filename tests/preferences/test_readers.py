"""Files of others: read, tokenise, write back."""

import json
from pathlib import Path

import pytest
from jinja2 import TemplateError

from caspo_jax.errors import UserError
from caspo_jax.models.tokenizer import load_tokenizer
from caspo_jax.preferences import (
    NoContrastError,
    NoContrastWarning,
    build_candidates,
    labelled_to_trace,
    labelled_to_traces,
    load_pairs,
    read_step_dpo,
    read_trl,
    select_pairs,
    step_dpo_from_record,
    to_step_dpo_record,
    to_trl_record,
    tokenize_pairs,
    trl_from_record,
)
from caspo_jax.preferences.config import PairConfig
from caspo_jax.steps import prm800k_from_record
from caspo_jax.steps.labels import LabelledSteps

STEP_DPO = {
    "dataset": "gsm",
    "prompt": "How much is 1 + 1 + 1?",
    "initial_reason_steps": "Step 1: 1 + 1 = 2.\n",
    "chosen": "Step 2: 2 + 1 = 3.",
    "rejected": "Step 2: 2 + 1 = 4.",
    "full_chosen": "ignored",
}


class Tokenizer:
    """One token a character."""

    eos_token_id = 7
    bos_token = None
    chat_template = None
    all_special_tokens = ("<|im_start|>",)

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]

    def __call__(self, text, add_special_tokens=True, **_):
        if isinstance(text, list):
            return {"input_ids": [self.encode(one, add_special_tokens) for one in text]}
        ids = self.encode(text)
        return {"input_ids": ids, "special_tokens_mask": [0] * len(ids)}


class Chat(Tokenizer):
    chat_template = "yes"

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        return "".join(f"<|im_start|>{m['role']}:{m['content']}" for m in messages) + "<|im_start|>"


def write(tmp_path: Path, *records):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_step_dpo_round_trip(tmp_path):
    (pair,) = read_step_dpo(write(tmp_path, STEP_DPO))
    assert (pair.prefix, pair.chosen_verdict, pair.rejected_verdict) == (
        "Step 1: 1 + 1 = 2.\n",
        "correct",
        "wrong",
    )
    assert pair.ends_trace == (False, False)
    record = to_step_dpo_record(pair)
    assert record == {k: STEP_DPO[k] for k in record}
    again = read_step_dpo(write(tmp_path, record))[0]
    assert again.id == pair.id
    (ids,) = tokenize_pairs([pair], Tokenizer(), delimiter="\n\n")
    assert "".join(map(chr, ids.prompt_ids + ids.prefix_ids + ids.chosen_ids)) == (
        pair.prompt + pair.prefix + pair.chosen + "\n\n"
    )
    assert tokenize_pairs([ids], Tokenizer()) == [ids]
    (chat,) = tokenize_pairs([pair], Chat())
    assert "".join(map(chr, chat.prompt_ids)) == f"<|im_start|>user:{pair.prompt}<|im_start|>"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Sky? ", "chosen": "It is blue.", "rejected": "It is green."},
        {"chosen": "Sky? It is blue.", "rejected": "Sky? It is green."},
        {
            "prompt": [{"role": "user", "content": "Sky? "}],
            "chosen": [{"role": "assistant", "content": "It is blue."}],
            "rejected": [{"role": "assistant", "content": "It is green."}],
        },
        {
            "chosen": [{"role": "user", "content": "Sky? "}, {"role": "assistant", "content": "It is blue."}],
            "rejected": [
                {"role": "user", "content": "Sky? "},
                {"role": "assistant", "content": "It is green."},
            ],
        },
        {  # as UltraFeedback has it: the prompt once more, as a string
            "prompt": "Sky? ",
            "chosen": [{"role": "user", "content": "Sky? "}, {"role": "assistant", "content": "It is blue."}],
            "rejected": [
                {"role": "user", "content": "Sky? "},
                {"role": "assistant", "content": "It is green."},
            ],
        },
    ],
)
def test_trl_formats(tmp_path, record):
    (pair,) = read_trl(write(tmp_path, record))
    assert pair.prompt + pair.chosen == "Sky? It is blue."
    assert pair.prompt + pair.rejected == "Sky? It is green."
    assert pair.ends_trace == (True, True)
    (ids,) = tokenize_pairs([pair], Tokenizer())
    assert ids.chosen_ids[-1] == ids.rejected_ids[-1] == 7
    assert trl_from_record(to_trl_record(pair)).chosen == pair.chosen
    assert trl_from_record(to_trl_record(pair, conversational=True)).prompt == pair.prompt


def test_trl_conversations_need_a_template():
    system = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Green."}],
    }
    with pytest.raises(UserError, match="needs a tokenizer"):
        trl_from_record(system)
    pair = trl_from_record(system, Chat())
    assert pair.prompt == "<|im_start|>system:Be brief.<|im_start|>user:Sky?<|im_start|>"
    (ids,) = tokenize_pairs([pair], Chat())
    assert "".join(map(chr, ids.prompt_ids)) == pair.prompt  # rendered once


def test_a_chat_template_that_refuses_the_messages_is_named_with_its_line(tmp_path):
    class Strict(Chat):
        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            raise TemplateError("System role not supported")

    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}]
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in ("Blue.", "Green."))
    path = write(tmp_path, {"prompt": system, "chosen": chosen, "rejected": rejected})
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: `prompt`: .*fails \(System role not supported\)"):
        read_trl(path, Strict())


@pytest.mark.parametrize(
    "reader, record, message",
    [
        (read_step_dpo, {"prompt": "a"}, "needs `prompt`, `initial_reason_steps`"),
        (read_step_dpo, {**STEP_DPO, "rejected": STEP_DPO["chosen"]}, "the same text"),
        (read_trl, {"prompt": "a", "chosen": "b"}, "needs `rejected`"),
        (read_trl, {"prompt": "a", "chosen": "b", "rejected": ["c"]}, "all strings or all lists"),
        (
            read_trl,
            {"prompt": [{"role": "user", "content": "a"}], "chosen": [], "rejected": []},
            "exactly one assistant message",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, reader, record, message):
    with pytest.raises(UserError, match=rf"pairs.jsonl:1: .*{message}"):
        reader(write(tmp_path, record))


def test_pairs_that_say_nothing_are_left_out_and_counted(tmp_path):
    same = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]
    nothing = [
        {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Blue.\n"},
        {"prompt": "Sky? ", "chosen": "Blue.", "rejected": ""},
        {"chosen": same, "rejected": same},
    ]
    for record in nothing:
        with pytest.raises(NoContrastError):
            trl_from_record(record)
    good = {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Green."}
    with pytest.warns(NoContrastWarning, match=r"left out 3 of 5 pairs; the first: .*pairs.jsonl:2: .*same"):
        pairs, left_out = load_pairs(write(tmp_path, good, *nothing, good), trl_from_record)
    assert ([p.rejected for p in pairs], left_out) == (["Green."] * 2, 3)
    with pytest.raises(UserError, match=r"pairs.jsonl:1: .*same text"):
        read_trl(write(tmp_path, *nothing))
    with pytest.warns(NoContrastWarning, match="1 of 2"):
        assert (
            len(read_step_dpo(write(tmp_path, {**STEP_DPO, "rejected": STEP_DPO["chosen"]}, STEP_DPO))) == 1
        )


def test_a_step_that_has_its_delimiter_gets_no_second(tmp_path):
    (pair,) = read_step_dpo(write(tmp_path, {**STEP_DPO, "chosen": "3\n\n", "rejected": "4"}))
    (ids,) = tokenize_pairs([pair], Tokenizer(), delimiter="\n\n")
    assert ids.chosen_ids[1:] == ids.rejected_ids[1:] == (10, 10)


def test_an_answer_that_spells_its_eos_gets_no_second():
    pair = trl_from_record({"prompt": "Sky? ", "chosen": "B\x07", "rejected": "G"})  # token 7 is the EOS
    (ids,) = tokenize_pairs([pair], Tokenizer())
    assert (ids.chosen_ids, ids.rejected_ids) == ((66, 7), (71, 7))


def test_a_thought_that_both_sides_open_is_not_opened_by_the_template_too():
    class Thinker(Chat):
        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            return super().apply_chat_template(messages, add_generation_prompt, tokenize) + "<think>\n"

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

    def prompt_of(prompt, *sides):
        chosen, rejected = ([{"role": "assistant", "content": side}] for side in sides)
        record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        (pair,) = tokenize_pairs([trl_from_record(record, Thinker())], Thinker())
        return Thinker().decode(pair.prompt_ids)

    asked = [{"role": "user", "content": "Sky?"}]
    opened = "<|im_start|>user:Sky?<|im_start|><think>\n"
    assert prompt_of(asked, "<think>\nHm.\n</think>\nBlue", "<think>\n</think>\nRed") == opened[:-8]
    assert prompt_of(asked, "Hm.\n</think>\nBlue", "</think>\nRed") == opened
    step = {**STEP_DPO, "initial_reason_steps": "<think>\nStep 1: 1 + 1 = 2.\n"}
    (pair,) = tokenize_pairs([step_dpo_from_record(step)], Thinker())
    assert Thinker().decode(pair.prompt_ids).endswith("1 + 1 + 1?<|im_start|>")


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_half_a_character_is_named(tmp_path, side):
    path = write(tmp_path, {"prompt": "Sky? ", "chosen": "B", "rejected": "G"} | {side: "b \ud800"})
    with pytest.raises(UserError, match=rf"pairs\.jsonl:1: `{side}`: character 2 is a lone surrogate"):
        read_trl(path)


def test_pairs_of_other_prefixes_are_other_pairs(tmp_path):
    path = write(tmp_path, STEP_DPO, {**STEP_DPO, "initial_reason_steps": "Step 1: 1 + 1 is 2.\n"})
    one, other = read_step_dpo(path)
    assert one.id != other.id


def test_without_a_prompt_no_word_is_cut_in_two():
    pair = trl_from_record({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is ", "blue.", "black.")
    pair = trl_from_record({"chosen": "blue", "rejected": "black"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("", "blue", "black")


def test_an_answer_is_the_assistant_s():
    user = [{"role": "user", "content": "Sky?"}]
    sides = {name: [{"role": "user", "content": name}] for name in ("chosen", "rejected")}
    with pytest.raises(UserError, match="`chosen` must end in exactly one assistant message"):
        trl_from_record({"prompt": user, **sides})


def test_each_side_ends_as_it_says_with_the_given_token_and_begins_with_no_other():
    class Begins(Tokenizer):
        def encode(self, text, add_special_tokens=True):
            return [1] * add_special_tokens + super().encode(text)

    record = {"prompt": "Sky? ", "chosen": "B", "rejected": "G"}
    for ends in ([True, False], [False, True]):
        pair = trl_from_record(record | {"ends_trace": ends})
        (ids,) = tokenize_pairs([pair], Begins(), eos_id=9, delimiter="|")
        assert ids.chosen_ids == (ord("B"), 9 if ends[0] else ord("|"))
        assert ids.rejected_ids == (ord("G"), 9 if ends[1] else ord("|"))


def test_a_prefix_is_part_of_the_prompt_for_trl(tmp_path):
    (pair,) = read_step_dpo(write(tmp_path, STEP_DPO))
    assert to_trl_record(pair)["prompt"] == STEP_DPO["prompt"] + STEP_DPO["initial_reason_steps"]
    with pytest.raises(UserError, match="has a prefix"):
        to_trl_record(pair, conversational=True)


def test_steps_stay_steps_through_trls_format(tmp_path):
    (step,) = read_step_dpo(write(tmp_path, STEP_DPO))
    record = to_trl_record(step)
    assert record["schema"] == {"name": "trl_pair", "version": 1}
    back = trl_from_record(record)
    assert (back.id, back.ends_trace) == (step.id, step.ends_trace) == (step.id, (False, False))
    # The steps before stay outside the question's turn.
    chats = tokenize_pairs([step, back], Chat())
    assert chats[0].prompt_ids == chats[1].prompt_ids
    assert chats[0].prefix_ids == chats[1].prefix_ids == tuple(map(ord, STEP_DPO["initial_reason_steps"]))
    stranger = trl_from_record(to_trl_record(step) | {"prefix": "x"})  # a field of somebody else's
    assert (stranger.prompt, stranger.prefix) == (step.prompt + step.prefix, "")
    (ids,) = tokenize_pairs([back], Tokenizer(), delimiter="|")
    assert (ids.chosen_ids[-1], ids.rejected_ids[-1]) == (ord("|"), ord("|"))
    with pytest.raises(UserError, match="two booleans"):
        trl_from_record(to_trl_record(step) | {"ends_trace": "no"})


@pytest.mark.parametrize("name", ["qwen_like", "llama3_like"])
def test_trl_is_given_the_prompt_as_it_was_asked(tmp_path, name):
    """TRL applies no template to a text: the model would be trained on a question that runs into its own answer."""
    tokenizer = load_tokenizer(Path(__file__).parents[1] / "golden" / "tokenizers" / name)
    (step,) = tokenize_pairs(read_step_dpo(write(tmp_path, STEP_DPO)), tokenizer, delimiter="\n")
    record = to_trl_record(step, tokenizer=tokenizer)
    assert tuple(tokenizer.encode(record["prompt"], add_special_tokens=False)) == (
        step.prompt_ids + step.prefix_ids
    )
    (back,) = tokenize_pairs([trl_from_record(record)], tokenizer, delimiter="\n")
    assert (back.prompt_ids, back.prefix_ids) == (step.prompt_ids, step.prefix_ids)
    assert (back.chosen_ids, back.rejected_ids) == (step.chosen_ids, step.rejected_ids)


def test_prm800k_siblings_become_pairs():
    record = {
        "question": {"problem": "2+2?", "ground_truth_answer": "4"},
        "label": {
            "steps": [
                {"completions": [{"text": "ok", "rating": 1}], "chosen_completion": 0},
                {
                    "completions": [{"text": "4", "rating": 1}, {"text": "5", "rating": -1}],
                    "chosen_completion": None,
                },
            ]
        },
    }
    traces = labelled_to_traces(prm800k_from_record(record, id="r"), Tokenizer())
    assert traces[2].text == "ok\n\n5\n\n"
    assert "".join(map(chr, traces[2].token_ids)) == traces[2].text
    candidates, counts = build_candidates(traces)
    assert counts == {"steps": 5, "unfinished": 0, "empty": 0}
    sure = [type(c)(**{**c.__dict__, "confidence": 0.5}) for c in candidates]
    pairs, _ = select_pairs(sure, PairConfig(kinds=("wrong",)))
    assert [(p.prefix, p.chosen, p.rejected) for p in pairs] == [("ok\n\n", "4", "5")]


def test_what_alternatives_share_is_encoded_once():
    asked = []

    class Counting(Tokenizer):
        def encode(self, text, **options):
            asked.append(text)
            return super().encode(text, **options)

    steps = [f"step {i}" for i in range(9)]
    solutions = [
        LabelledSteps(
            f"q/{i}/{j}", f"question {i}?", (*steps[:j], f"other {j}"), ("correct",) * j + ("wrong",)
        )
        for i in range(3)
        for j in range(9)
    ]
    traces = labelled_to_traces(solutions, Counting())
    # A step stands with a delimiter, or at the end of its solution.
    assert sorted(asked) == sorted(
        [*(s + "\n\n" for s in steps[:8]), *(f"other {j}" for j in range(9))]
        + [f"question {i}?" for i in range(3)]
    )
    assert traces == [labelled_to_trace(solution, Tokenizer()) for solution in solutions]
    with pytest.raises(UserError, match="question 'q/empty'"):
        labelled_to_traces([*solutions, LabelledSteps("q/empty", "", ("a",), ("wrong",))], Tokenizer())
