"""The bytes of token ids join to the bytes of the text that they were made from."""

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from treepo.engine import token_texts
from treepo.engine.texts import special_ids
from treepo.tasks import embedded

CORPUS = [
    "the answer is 42, said she",
    "na\u00efve caf\u00e9 \u2581 \u65e5\u672c",
    "a\tb\n\nc  d",
] * 3
TEXTS = [*CORPUS[:3], "\\boxed{1/2} \U0001f600", "  two spaces", "x", "<0x41>"]
SPECIAL = ["<s>", "</s>"]


def byte_level():
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_pieces():
    return [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback_bpe():
    """Llama-2's kind."""
    words = [*SPECIAL, *byte_pieces(), "\u2581", "t", "h", "e", "th", "the", "\u2581the", "1"]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def unigram():
    """SentencePiece's kind, with byte fallback."""
    words = ["</s>", "\u2581", "\u2581the", "answer", "a", "e", "s", *byte_pieces()]
    pieces = [(word, -1.0 - 0.01 * index) for index, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def wrapped(tokenizer):
    # Transformers adds what it is told of, as special tokens.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback_bpe, unigram])
@pytest.mark.parametrize("text", TEXTS)
def test_joined_bytes_of_the_ids_are_the_text(make, text):
    if make is not byte_level:
        text = text.replace("\u2581", "_").replace("<0x41>", "A")  # pieces that mean other texts
    tokenizer = wrapped(make())
    texts = token_texts(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(texts[index] for index in ids)
    assert joined in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("make", [byte_level, byte_fallback_bpe, unigram])
def test_every_id_has_an_entry_and_special_tokens_have_no_bytes(make):
    tokenizer = wrapped(make())
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    assert texts[tokenizer.eos_token_id] == b""


def test_an_added_token_that_is_not_special_has_its_text():
    tokenizer = wrapped(byte_level())
    tokenizer.add_tokens([AddedToken("<caf\u00e9>", special=False)])
    index = tokenizer.convert_tokens_to_ids("<caf\u00e9>")
    assert token_texts(tokenizer)[index] == "<caf\u00e9>".encode()


@pytest.mark.parametrize("make", [byte_level, byte_fallback_bpe, unigram])
def test_special_tokens_are_found_by_how_they_are_written_and_no_others(make):
    tokenizer = wrapped(make())
    tokenizer.add_tokens([AddedToken("<end>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<plain>", special=False)])
    index = tokenizer.convert_tokens_to_ids("<end>")
    assert special_ids(tokenizer, ("<end>", "<plain>", "the", "end")) == {index}
    assert special_ids(tokenizer, ("</s>", "<end>")) == {index, tokenizer.eos_token_id}


def test_a_tokenizer_of_whole_words_is_decoded_id_by_id():
    tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL_PATH)
    texts = token_texts(tokenizer)
    text = "37539*9=#337851"
    assert b"".join(texts[index] for index in tokenizer(text)["input_ids"]) == text.encode()
    assert texts[tokenizer.eos_token_id] == b""
