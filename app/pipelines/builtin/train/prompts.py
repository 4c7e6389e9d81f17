"""What people say when they want a motion: the small vocabulary and its tokenizer.

Knows nothing of pictures.
"""

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
    """One token a word; words that say nothing about motion are all the same unknown one."""
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
    """The ids of the words that ask for `motion`."""
    return [VOCABULARY.index(word) for word in WORDS[motion.name]]
