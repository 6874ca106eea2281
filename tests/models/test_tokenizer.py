import json
import shutil

import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import (
    ModelConfig,
    RopeConfig,
    check_prompt_ids,
    decode,
    encode_prompt,
    eos_ids,
    load_tokenizer,
    token_bytes,
)
from caspo_jax.models.tokenizer import opened_once, save_tokenizer, without_thought
from caspo_jax.types import Question

NAMES = ("qwen_like", "llama3_like")


@pytest.fixture(scope="module", params=NAMES)
def case(request, golden):
    folder = golden / "tokenizers"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))[request.param]
    return load_tokenizer(folder / request.param), expected


def test_texts_encode_and_decode_as_expected(case):
    tokenizer, expected = case
    for text in expected["texts"]:
        if text["text"]:
            assert encode_prompt(tokenizer, Question("q", prompt=text["text"])) == text["ids"]
        assert decode(tokenizer, text["ids"]) == text["decoded_skip"]


def test_question_goes_through_the_chat_template(case):
    tokenizer, expected = case
    chat = expected["chats"][0]
    assert encode_prompt(tokenizer, Question("q", question=chat["messages"][0]["content"])) == chat["ids"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('no system message') }}",
        "{{ messages[5].content }}",
        {"rag": "{{ 1 }}"},
    ],
)
def test_a_chat_template_that_fails_is_named_with_its_question(golden, template):
    tokenizer = load_tokenizer(golden / "tokenizers" / "qwen_like")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="'q7': the tokenizer's chat template fails") as error:
        encode_prompt(tokenizer, Question("q7", question="x"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["prompt", "question"])
def test_half_a_character_is_named_with_its_question(golden, field):
    tokenizer = load_tokenizer(golden / "tokenizers" / "qwen_like")
    with pytest.raises(UserError, match="'q7': character 1 is a lone surrogate"):
        encode_prompt(tokenizer, Question("q7", **{field: "a\ud83d"}))


def test_bytes_join_to_the_decoded_text(case):
    tokenizer, expected = case
    table = token_bytes(tokenizer, 520)
    assert len(table) == 520
    assert table[512:] == [b""] * 8
    special = set(tokenizer.added_tokens_decoder)  # all added tokens of these two are special
    assert all((table[id] == b"") == (id in special) for id in range(512))
    for text in expected["texts"]:
        assert b"".join(table[id] for id in text["ids"]) == text["decoded_skip"].encode()
    # every token by itself, partial characters included
    for id in range(512):
        assert table[id].decode("utf-8", "replace") == decode(tokenizer, [id])


def test_a_vocabulary_smaller_than_the_tokenizer_is_cut(case):
    assert token_bytes(case[0], 100) == token_bytes(case[0], 512)[:100]


def test_added_tokens_that_are_not_special_are_text(golden):
    tokenizer = load_tokenizer(golden / "tokenizers" / "qwen_like")
    tokenizer.add_tokens(["<think>", "a b"])
    table = token_bytes(tokenizer, 520)
    assert table[512:514] == [b"<think>", b"a b"]
    assert decode(tokenizer, [512, 513]) == "<think>a b"


def test_tokens_that_are_special_by_name_alone_spell_nothing(golden):
    tokenizer = load_tokenizer(golden / "tokenizers" / "qwen_like")
    tokenizer.add_tokens(["<stop>"])  # as text, in tokenizer.json
    tokenizer.eos_token = "<stop>"  # in tokenizer_config.json
    assert token_bytes(tokenizer, 513)[512] == b""
    assert decode(tokenizer, [512, 64, 512]) == decode(tokenizer, [64])


def test_a_decoder_without_exact_bytes_is_refused(golden):
    from tokenizers import decoders

    tokenizer = load_tokenizer(golden / "tokenizers" / "qwen_like")
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="Metaspace"):
        token_bytes(tokenizer, 512)


def test_prompt_gets_the_tokenizers_bos_once(golden):
    from tokenizers import processors

    tokenizer = load_tokenizer(golden / "tokenizers" / "llama3_like")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 506)]
    )
    plain = encode_prompt(tokenizer, Question("q", prompt="hi"))
    assert plain[0] == 506
    assert encode_prompt(tokenizer, Question("q", prompt="<|begin_of_text|>hi")) == plain
    templated = encode_prompt(tokenizer, Question("q", question="hi"))
    assert templated.count(506) == 1
    tokenizer.chat_template = None
    assert encode_prompt(tokenizer, Question("q", question="hi")) == plain


def test_a_prompt_is_left_open_where_the_tokenizer_appends_its_eos(golden):
    from tokenizers import processors

    tokenizer = load_tokenizer(golden / "tokenizers" / "llama3_like")
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<|begin_of_text|> $A {eos}",
        special_tokens=[("<|begin_of_text|>", 506), (eos, tokenizer.eos_token_id)],
    )
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert encode_prompt(tokenizer, Question("q", prompt="hi")) == [506, *plain]
    written = encode_prompt(tokenizer, Question("q", prompt="hi" + eos))  # the prompt's own one stays
    assert written == [506, *plain, tokenizer.eos_token_id]
    assert encode_prompt(tokenizer, Question("q", prompt="")) == [506]


@pytest.fixture
def distilled(golden, tmp_path):
    """A function that writes a tokenizer as DeepSeek-R1-Distill's are: BOS asked for, and in no post-processor."""

    def write(**changes):
        folder = tmp_path / "source"
        shutil.copytree(golden / "tokenizers" / "llama3_like", folder, dirs_exist_ok=True)
        core = json.loads((folder / "tokenizer.json").read_text())
        core["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        (folder / "tokenizer.json").write_text(json.dumps(core))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config |= {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
        return folder

    return write


def test_a_bos_that_the_config_alone_asks_for_is_added(distilled):
    tokenizer = load_tokenizer(distilled())
    plain = encode_prompt(tokenizer, Question("q", prompt="Who?"))
    assert plain == [506, *tokenizer.encode("Who?", add_special_tokens=False)]
    assert encode_prompt(tokenizer, Question("q", prompt="<|begin_of_text|>Who?")) == plain
    assert encode_prompt(tokenizer, Question("q", question="Who?")).count(506) == 1
    for changes in ({"add_bos_token": False}, {"add_bos_token": None}, {"bos_token": None}):
        assert 506 not in encode_prompt(load_tokenizer(distilled(**changes)), Question("q", prompt="Who?"))


def test_a_tokenizer_is_saved_in_words_that_transformers_4_reads_too(distilled, tmp_path):
    named = ["<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = load_tokenizer(distilled(additional_special_tokens=named))
    save_tokenizer(tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == named
    assert "extra_special_tokens" not in config  # transformers 4 expects an object there
    assert (config["tokenizer_class"], config["add_bos_token"], config["add_eos_token"]) == (
        "LlamaTokenizerFast",
        True,
        False,
    )
    again = load_tokenizer(tmp_path / "out")
    assert again.extra_special_tokens == tokenizer.extra_special_tokens == named
    for field in ("prompt", "question"):
        question = Question("q", **{field: "Who?"})
        assert encode_prompt(again, question) == encode_prompt(tokenizer, question)


def test_prompt_ids_are_verbatim_and_need_no_tokenizer():
    assert encode_prompt(None, Question("q", question="x", prompt_ids=(5, 5))) == [5, 5]
    assert token_bytes(None, 3) == [b"", b"", b""]
    assert decode(None, [1, 2]) == ""
    with pytest.raises(UserError, match="no tokenizer"):
        encode_prompt(None, Question("q7", prompt="x"))


@pytest.mark.parametrize(
    "question", [Question("q7"), Question("q7", prompt=""), Question("q7", prompt_ids=())]
)
def test_empty_prompts_are_refused(case, question):
    with pytest.raises(UserError, match="q7"):
        encode_prompt(case[0], question)


def test_prompt_checks():
    config = ModelConfig("llama", 10, 8, 8, 1, 2, 1, 4, max_position_embeddings=6)
    check_prompt_ids([0, 9, 3], config, "q", new_tokens=3)
    for ids, extra, words in (
        ([], 0, "empty"),
        ([10], 0, "id 10"),
        ([-1], 0, "id -1"),
        ([1] * 4, 3, "context of 6"),
    ):
        with pytest.raises(UserError, match=words):
            check_prompt_ids(ids, config, "line 3", new_tokens=extra)


def test_prompts_may_be_as_long_as_yarn_makes_the_context():
    rope = RopeConfig("yarn", factor=2.5, original_max_position_embeddings=6)
    config = ModelConfig("llama", 10, 8, 8, 1, 2, 1, 4, rope, max_position_embeddings=6)
    check_prompt_ids([1] * 12, config, "q", new_tokens=3)
    with pytest.raises(UserError, match=r"context of 15 \(config.json: factor in rope_scaling"):
        check_prompt_ids([1] * 12, config, "q", new_tokens=4)
    plain = ModelConfig("llama", 10, 8, 8, 1, 2, 1, 4, max_position_embeddings=6)
    with pytest.raises(UserError, match=r"context of 6 \(config.json: max_position_embeddings\)"):
        check_prompt_ids([1] * 7, plain, "q")


def test_eos_ids_merge_the_tokenizers(case):
    config = ModelConfig("llama", 512, 8, 8, 1, 2, 1, 4, eos_token_ids=(3,))
    assert eos_ids(config, case[0]) == (3, case[1]["eos_id"])
    assert eos_ids(config) == (3,)


def test_eos_ids_outside_the_vocabulary_are_left_out_or_refused(case):
    tokenizer, expected = case
    config = ModelConfig("llama", 10, 8, 8, 1, 2, 1, 4, eos_token_ids=(3, 10, -1))
    assert eos_ids(config, tokenizer) == (3,)
    config = ModelConfig("llama", 10, 8, 8, 1, 2, 1, 4)
    assert eos_ids(config) == ()
    with pytest.raises(UserError, match=rf"^here: .*eos_token_id {expected['eos_id']} .*vocabulary of 10"):
        eos_ids(config, tokenizer, "here")


def test_folders_without_a_usable_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_s_own_code_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "vocab.json").write_text("{}")
    mapped = {"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(mapped))
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass T: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    assert not ran.exists()


def test_a_thought_that_the_template_opens(case):
    tokenizer, _ = case
    prompt = encode_prompt(tokenizer, Question("q", prompt="Sky?\n<think>\n"))
    for ids in (prompt, prompt[: len(prompt) // 2]):
        assert (
            opened_once(tokenizer, ids, "Hm.\n</think>\nBlue", "<think>Hm.") == ids
        )  # one of the two goes on from it
    kept = opened_once(tokenizer, prompt, "<think>\nHm.", "\n<think>")
    assert prompt[: len(kept)] == kept
    assert decode(tokenizer, kept).rstrip() == "Sky?"
    assert decode(tokenizer, without_thought(tokenizer, prompt)) == "Sky?\n<think>\n\n</think>\n\n"
    assert without_thought(tokenizer, kept) == kept


def test_no_text_is_cleaned_up_where_a_thought_is_looked_for(golden, monkeypatch):
    """Llama 3's tokenizers ask for it, and transformers warns wherever a text is asked for as they say."""
    tokenizer = load_tokenizer(golden / "tokenizers" / "llama3_like")
    tokenizer.clean_up_tokenization_spaces = True
    asked, decoding = [], tokenizer.decode

    def spy(ids, **options):
        asked.append(options)
        return decoding(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", spy)
    prompt = encode_prompt(tokenizer, Question("q", prompt="Sky?\n<think>\n"))
    assert (
        len(opened_once(tokenizer, prompt, "<think> Hm."))
        < len(prompt)
        < len(without_thought(tokenizer, prompt))
    )
    assert {options["clean_up_tokenization_spaces"] for options in asked} == {False}
