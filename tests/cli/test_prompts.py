from types import SimpleNamespace

import numpy as np
import pytest

from treepo.errors import DataError, InvalidInputError
from treepo.prompts import encode, eos_token_ids, load_jsonl

BOS, EOS = 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Characters as tokens; adds a start token to texts, and so does its chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index + 3 for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = {"<u>": 0, "<s>": BOS, "</s>": EOS, **letters}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<u>",
        chat_template=TEMPLATE,
    )


def letters(text):
    return [ord(letter) - ord("a") + 3 for letter in text]


def test_text_gets_one_start_token(tokenizer):
    assert encode(tokenizer, "abc").tolist() == [BOS, *letters("abc")]


def test_text_that_begins_with_the_start_token_keeps_one(tokenizer):
    assert encode(tokenizer, "<s>abc").tolist() == [BOS, *letters("abc")]


def test_messages_go_through_the_template_once_with_one_start_token(tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    assert encode(tokenizer, messages).tolist() == [BOS, *letters("uhia")]


def test_last_assistant_message_is_continued(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
    assert encode(tokenizer, messages).tolist() == [BOS, *letters("uhiaso")]


def test_token_ids_pass_through_unchanged(tokenizer):
    ids = encode(tokenizer, [BOS, BOS, 5])
    assert ids.tolist() == [BOS, BOS, 5]
    assert ids.dtype == np.uint32


@pytest.mark.parametrize("prompt", [[], [-1, 2], [0.5], [2**32 + 5]])
def test_prompt_that_is_no_list_of_tokens_is_refused(tokenizer, prompt):
    with pytest.raises(InvalidInputError):
        encode(tokenizer, prompt)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match="there is no tokenizer; give token ids"):
        encode(None, "hi")


def test_messages_without_a_template_are_refused(tokenizer):
    plain = SimpleNamespace(chat_template=None)
    with pytest.raises(InvalidInputError, match="no chat template"):
        encode(plain, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [(None, None, ()), (5, None, (5,)), ([7, 5], 5, (5, 7)), ([7], 3, (3, 7)), (None, 3, (3,))],
)
def test_stop_tokens_are_the_union_of_model_and_tokenizer(generation, own, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=generation))
    tokenizer = SimpleNamespace(eos_token_id=own)
    assert eos_token_ids(model, tokenizer) == expected
    assert eos_token_ids(model.generation_config, tokenizer) == expected


def test_rows_keep_their_columns_and_lack_none(write_rows):
    file = write_rows([{"prompt": "a", "answer": 3}, {"prompt": [{"role": "u", "content": "b"}]}])
    rows = load_jsonl(file)
    assert rows[0] == {"prompt": "a", "answer": 3}
    assert rows[1]["answer"] is None


def test_blank_lines_and_a_byte_order_mark_are_ignored(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\n')
    assert [row["prompt"] for row in load_jsonl(file)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[1]", r"line 2: expected an object"),
        ('{"text": "a"}', r"line 2: no 'prompt'; it has text"),
        ('{"prompt": 5}', r"line 2: 'prompt' must be a text or a list of messages, got 5"),
        ('{"prompt": ""}', r"line 2: 'prompt' is an empty text"),
        ('{"prompt": []}', r"line 2: 'prompt' is an empty list"),
        ('{"prompt": [{"role": "user"}]}', r"line 2: 'prompt' holds a message without"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load_jsonl(file)


def test_every_bad_line_is_named(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{\n{"prompt": "a"}\n[]\n')
    with pytest.raises(DataError, match=r"line 1: .*; line 3: "):
        load_jsonl(file)


def test_many_bad_lines_are_counted(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("{\n" * 8)
    with pytest.raises(DataError, match=r"line 5: .*; and 3 more"):
        load_jsonl(file)


def test_missing_empty_and_binary_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none.jsonl: No such file"):
        load_jsonl(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl is empty"):
        load_jsonl(empty)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_jsonl(binary)
