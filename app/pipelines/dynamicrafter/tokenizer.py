"""The CLIP tokenizer as OpenCLIP uses it: 77 tokens, padded with token 0.

Owns the sources of the vocabulary. Published DynamiCrafter checkpoints have none, so it is read from the
folder of any CLIP tokenizer or from CLIP's `bpe_simple_vocab_16e6.txt.gz`.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPTokenizer

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_BPE_MERGES = 49152 - 256 - 2
_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "!"


def byte_alphabet() -> list[str]:
    """A visible character for each of the 256 bytes, in CLIP's order.

    First the printable characters of Latin-1, then characters from U+0100 for the other bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + extra) for extra in range(256 - len(printable))]


def tokenizer_from_merges(merges: Sequence[tuple[str, str]], max_tokens: int = 77) -> CLIPTokenizer:
    """A tokenizer with CLIP's vocabulary: letters, letters at a word's end, one token a merge, start, end."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += [first + second for first, second in merges] + [_START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), pad_token=_PAD, model_max_length=max_tokens)


def load_tokenizer(source: str | Path | CLIPTokenizer) -> CLIPTokenizer:
    """Load a tokenizer from its folder or from CLIP's merges file; returns a tokenizer object unchanged.

    Raises FileNotFoundError, and ValueError for a tokenizer object that does not pad with token 0 as the
    original does.
    """
    if not isinstance(source, str | Path):
        if source.pad_token_id != 0:
            raise ValueError(
                f"the tokenizer pads with token {source.pad_token_id}; DynamiCrafter's must pad with 0"
            )
        return source
    path = Path(source)
    if path.is_dir():
        return CLIPTokenizer.from_pretrained(path, pad_token=_PAD, model_max_length=77, local_files_only=True)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    lines = text.split("\n")[1 : 1 + _BPE_MERGES]
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    return tokenizer_from_merges([(first, second) for first, second in pairs])


def find_tokenizer(checkpoint: Path) -> Path:
    """The tokenizer in the checkpoint's folder: a folder `tokenizer`, or CLIP's merges file.

    Raises FileNotFoundError.
    """
    for name in ("tokenizer", BPE_FILE):
        if (found := checkpoint.parent / name).exists():
            return found
    raise FileNotFoundError(
        f"{checkpoint.name} has no vocabulary: put the folder `tokenizer` of any CLIP model (vocab.json,"
        f" merges.txt) or {BPE_FILE} beside it, or name a tokenizer"
    )
