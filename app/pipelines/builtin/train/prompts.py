"""The vocabulary of motion words in prompts, and its tokenizer. Must not know pictures."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from app.pipelines.builtin.train.clips import Motion

DEFAULT_MOTION = "pan right"
PROMPT_TOKENS = 128
PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
WORDS = {
    "still": ("still", "static", "stationary", "fixed", "frozen", "motionless", "unmoving"),
    "pan left": ("left", "leftward", "leftwards"),
    "pan right": ("right", "rightward", "rightwards"),
    "pan up": ("up", "upward", "upwards"),
    "pan down": ("down", "downward", "downwards"),
}
VOCABULARY = (PADDING, END, UNKNOWN, *(word for words in WORDS.values() for word in words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word; all words outside the vocabulary are the unknown token."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=PROMPT_TOKENS,
    )


def ids_for(motion: Motion) -> list[int]:
    """The token ids of the words for `motion`."""
    return [VOCABULARY.index(word) for word in WORDS[motion.name]]
