"""The bytes of every token id, so that the search's rules about text need no tokenizer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Start of a word in SentencePiece's pieces.
_WORD_START = "\u2581"


def token_texts(tokenizer: Any) -> list[bytes]:
    """Return the bytes that each token id stands for in a text.

    Byte-level pieces (GPT-2 and its heirs) are read back byte by byte, SentencePiece pieces with
    their word starts as spaces and `<0xNN>` as that byte; others are what the tokenizer decodes
    the lone id to. The bytes of a text's ids are the text's, up to a leading space and to what the
    tokenizer's normalizer changes.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        One entry an id from 0 to the largest; empty for special tokens and for ids without one.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    texts = [b""] * (1 + max(vocabulary.values(), default=-1))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    kinds = _decoder_kinds(tokenizer)
    for piece, index in vocabulary.items():
        if index in special:
            continue
        if index in added:
            texts[index] = piece.encode()
        elif "ByteLevel" in kinds:
            texts[index] = _byte_level(piece)
        elif kinds & {"Metaspace", "ByteFallback"}:
            texts[index] = _sentence_piece(piece)
        else:
            texts[index] = _decoded(tokenizer, index)
    return texts


def special_ids(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    """Return the ids of special tokens that are written as one of `texts`.

    They have no bytes of their own in a text, so that only their id tells that one was sampled.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return {i for i in special if tokenizer.convert_ids_to_tokens(i) in texts}


def _decoder_kinds(tokenizer: Any) -> frozenset[str]:
    """Return the kinds of decoder that the tokenizer chains; none for one without the library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A decoder's state is its JSON, which `to_str` of the whole tokenizer would bury in the vocab.
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return frozenset()
    state = json.loads(decoder.__getstate__())
    return frozenset(x["type"] for x in (state, *state.get("decoders", ())))


def _byte_level(piece: str) -> bytes:
    if any(char not in _BYTE_OF_CHAR for char in piece):
        return piece.encode()
    return bytes(_BYTE_OF_CHAR[char] for char in piece)


def _sentence_piece(piece: str) -> bytes:
    is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
    if is_byte:
        return bytes.fromhex(piece[3:5])
    return piece.replace(_WORD_START, " ").encode()


def _decoded(tokenizer: Any, index: int) -> bytes:
    text: str = tokenizer.decode(
        [index], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text.encode()


def _bytes_by_char() -> dict[str, int]:
    """Return GPT-2's map of characters to bytes: printable Latin-1 is itself, the rest follows."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(256 + place): byte for place, byte in enumerate(rest)}


_BYTE_OF_CHAR = _bytes_by_char()
