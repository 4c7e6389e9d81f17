"""Where the vocabulary comes from, and that tokens are the ones the text encoder was trained on."""

import gzip
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from app.pipelines.dynamicrafter.tokenizer import (
    BPE_FILE,
    byte_alphabet,
    find_tokenizer,
    load_tokenizer,
    tokenizer_from_merges,
)

MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]


def _ids(tokenizer: CLIPTokenizer, prompt: str) -> list[int]:
    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77
    return list(ids)


def test_the_alphabet_gives_every_byte_its_own_visible_character() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert all(letter.isprintable() and not letter.isspace() for letter in alphabet)
    assert (alphabet[0], alphabet[93], alphabet[94], alphabet[188]) == ("!", "~", "\u00a1", "\u0100")


def test_a_prompt_is_lower_cased_merged_ended_and_padded_with_token_zero() -> None:
    vocabulary = tokenizer_from_merges(MERGES).get_vocab()
    assert len(vocabulary) == 2 * 256 + len(MERGES) + 2
    expected = ["<|startoftext|>", "the</w>", "cat</w>", "s</w>", "<|endoftext|>"]
    ids = _ids(tokenizer_from_merges(MERGES), "  The  CAT s ")
    assert ids == [vocabulary[token] for token in expected] + [0] * 72


def test_a_prompt_that_is_too_long_keeps_its_end_token() -> None:
    tokenizer = tokenizer_from_merges(MERGES)
    ids = _ids(tokenizer, "the " * 100)
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == [tokenizer.get_vocab()["the</w>"]] * 75


@pytest.mark.parametrize("name", [BPE_FILE, "merges.txt"])
def test_clips_own_merges_file_is_read(name: str, tmp_path: Path) -> None:
    text = "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in MERGES)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_tokenizer(tmp_path / name).get_vocab() == tokenizer_from_merges(MERGES).get_vocab()


def test_a_folder_of_any_clip_tokenizer_is_made_to_pad_with_token_zero(tmp_path: Path) -> None:
    vocabulary = tokenizer_from_merges(MERGES).get_vocab()
    other = CLIPTokenizer(vocab=vocabulary, merges=list(MERGES))
    assert other.pad_token_id != 0
    other.save_pretrained(tmp_path / "tokenizer")
    assert _ids(load_tokenizer(tmp_path / "tokenizer"), "the cat") == _ids(
        tokenizer_from_merges(MERGES), "the cat"
    )
    with pytest.raises(ValueError, match="pads with token"):
        load_tokenizer(other)


def test_a_tokenizer_beside_the_checkpoint_is_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"model.ckpt has no vocabulary.*{BPE_FILE}"):
        find_tokenizer(tmp_path / "model.ckpt")
    (tmp_path / BPE_FILE).touch()
    assert find_tokenizer(tmp_path / "model.ckpt") == tmp_path / BPE_FILE
    (tmp_path / "tokenizer").mkdir()
    assert find_tokenizer(tmp_path / "model.ckpt") == tmp_path / "tokenizer"
    with pytest.raises(FileNotFoundError, match="absent"):
        load_tokenizer(tmp_path / "absent")
