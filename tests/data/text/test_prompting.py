"""What a language model reads behind the queries: bos, prompt, caption, end; and which of it is learnt."""

import pytest

from mindblip2.config import Blip2Config
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.prompting import PromptedText, check_language_vocabulary, prompt_ids
from mindblip2.data.text.tokenizer import BertTokenizer


def config(tokenizer, kind="LlamaConfig", **changes):
    text = {
        "type": kind,
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 8,
    }
    return Blip2Config(text_config={**text, **changes.pop("text", {})}, **changes)


def parts(made):
    """The ids of the prompt, and those that are learnt."""
    ids, length, prompt = made["input_ids"].tolist(), int(made["length"]), int(made["prompt_length"])
    return ids[:prompt], ids[prompt:length], ids[length:]


def test_without_a_prompt_all_is_learnt_and_padding_is_not(llama):
    text = PromptedText(llama, config(llama), max_length=16)
    prompt, learnt, rest = parts(text("a red cat"))
    assert (prompt, learnt) == ([], [*llama.encode("a red cat", add_special_tokens=False), 2])
    assert rest == [0] * (16 - len(learnt)) and text("a red cat")["input_ids"].dtype == "int32"


@pytest.mark.parametrize("bos", [True, False])
def test_the_prompt_is_counted_with_bos_and_not_learnt(llama, bos):
    text = PromptedText(llama, config(llama, text_bos=bos), "a photo of", 24)
    prompt, learnt, _ = parts(text(" a red cat"))
    assert (
        prompt == [1] * bos + llama.encode("a photo of", add_special_tokens=False) == text.ids("a photo of")
    )
    assert prompt + learnt == text.ids("a photo of a red cat") + [2]


def test_opt_begins_with_bos_and_ends_with_the_line(opt):
    end = opt.encode("\n", add_special_tokens=False)
    made = PromptedText(
        opt, config(opt, "OPTConfig", text={"eos_token_id": end[0], "bos_token_id": 2}), "a photo of", 20
    )(" a dog")
    prompt, learnt, rest = parts(made)
    # as LAVIS: the line end is text
    whole = [opt.bos_token_id, *opt.encode("a photo of a dog\n", add_special_tokens=False)]
    assert len(end) == 1 and prompt + learnt == whole and set(rest) == {1}
    assert prompt == [2, *opt.encode("a photo of", add_special_tokens=False)]


def test_a_prompt_that_runs_into_the_caption_ends_where_the_ids_part(opt):
    """ "of " before "a" is " a" to GPT-2: the first token of the caption, which LAVIS's count would leave
    out."""
    made = PromptedText(opt, config(opt, "OPTConfig", text={"eos_token_id": 2}), "a photo of ", 20)("a dog")
    prompt, learnt, _ = parts(made)
    assert opt.decode(learnt) == " a dog" and opt.decode(prompt) == "a photo of"
    # control: counted alone it is longer
    assert len(opt.encode("a photo of ", add_special_tokens=False)) + 1 > len(prompt)


def test_a_long_caption_loses_its_end_and_its_end_token(llama):
    text = PromptedText(llama, config(llama), "a photo", 6)
    made = text(" of a red cat on the table")
    assert int(made["length"]) == 6 and 2 not in made["input_ids"]
    assert made["input_ids"].tolist() == text.ids("a photo of a red cat on the table")[:6]


@pytest.mark.parametrize("added", [(), ("<image>",)], ids=["unknown", "special"])
def test_a13_placeholders_of_image_tokens_are_taken_out_of_prompts(llama, added):
    """With a tokenizer that has the token, as those of transformers' BLIP-2, and with one that would spell
    it."""
    tokenizer = LanguageTokenizer(llama.vocab_file, added_tokens=added)
    assert (tokenizer.convert_tokens_to_ids("<image>") is None) == (not added)
    own = config(tokenizer, text_bos=True)
    text, prompt = PromptedText(tokenizer, own, max_length=24), "<image>" * 4 + "\nQuestion: how many?"
    asked = [1, *tokenizer.encode("\nQuestion: how many?", add_special_tokens=False)]
    assert text.ids(prompt) == prompt_ids(own, tokenizer, prompt) == asked
    # control: the tokenizer itself takes them for text
    assert tokenizer.encode(prompt, add_special_tokens=False) != asked[1:]
    assert text("<image>a red cat")["input_ids"].tolist() == text("a red cat")["input_ids"].tolist()
    processor = Blip2Processor(tokenizer=tokenizer)
    for given, plain in ((prompt, "\nQuestion: how many?"), (["<image>a", "b"], ["a", "b"])):
        assert (
            processor(text=given)["input_ids"].asnumpy().tolist()
            == processor(text=plain)["input_ids"].asnumpy().tolist()
        )


def test_a3_of_several_end_tokens_the_first_is_learnt(llama):
    text = PromptedText(llama, config(llama, text={"eos_token_id": [2, 9]}), max_length=16)
    assert parts(text("a red cat"))[1][-1] == 2
    with pytest.raises(ValueError, match=r"eos_token_id = \(2, 99999\) lies outside the vocabulary"):
        PromptedText(llama, config(llama, text={"eos_token_id": [2, 99999]}))


def test_chinese_goes_there_and_back(llama):
    made = PromptedText(llama, config(llama), "###问题：", 40)("一只红色的猫")
    _, learnt, _ = parts(made)
    assert llama.decode(learnt) == "一只红色的猫"


# ------------------------------------------------------------------------------------------------ errors
def test_a_prompt_without_room_for_a_caption_is_an_error(llama):
    taken = len(llama.encode("a photo of", add_special_tokens=False))
    assert PromptedText(llama, config(llama), "a photo of", taken + 1)
    with pytest.raises(
        ValueError, match=f"takes {taken} of text_transforms.max_length = {taken} tokens and leaves no room"
    ):
        PromptedText(llama, config(llama), "a photo of", taken)


def test_the_tokenizer_of_another_model_is_an_error(llama):
    with pytest.raises(ValueError, match="not of the same model"):
        PromptedText(llama, config(llama, text={"vocab_size": 32000}))
    with pytest.raises(
        ValueError, match="knows 30523 tokens, the language model 32000: set processor.tokenizer"
    ):
        check_language_vocabulary(config(llama, text={"vocab_size": 32000}), BertTokenizer())


def test_a_special_id_outside_the_vocabulary_is_an_error(opt):
    with pytest.raises(ValueError, match="eos_token_id = 50118 lies outside the vocabulary of 400"):
        PromptedText(opt, config(opt, "OPTConfig"))


def test_a_model_with_the_words_of_bert_may_be_one(llama):
    bert = BertTokenizer()
    text = PromptedText(bert, config(bert, text={"bos_token_id": 101, "eos_token_id": 102}), "a", 8)
    assert parts(text(" cat"))[:2] == (
        [bert.convert_tokens_to_ids("a")],
        [bert.convert_tokens_to_ids("cat"), 102],
    )


def test_a_caption_may_have_a_prompt_of_its_own(llama):
    text = PromptedText(llama, config(llama), "a photo of", 40)
    prompt, learnt, _ = parts(text("red", "Question: what colour? Short answer:"))
    assert prompt == text.ids("Question: what colour? Short answer:") and llama.decode(learnt) == "red"
    assert parts(text(" red"))[0] == text.ids("a photo of")  # control: the others keep the common one
    with pytest.raises(
        ValueError, match=r"takes \d+ of text_transforms.max_length = 40 tokens and leaves no room"
    ):
        text("red", "what is it? " * 12)
