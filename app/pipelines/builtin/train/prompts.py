"""What people say when they want a motion: the small vocabulary, its tokenizer, random prompts for training.

Knows nothing of pictures.
"""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from app.pipelines.builtin.train.clips import Motion

DEFAULT_MOTION = "pan right"
UNKNOWN = "<unk>"
DIRECTIONS = {
    "pan left": ("left", "left", "left", "leftward", "leftwards"),
    "pan right": ("right", "right", "right", "rightward", "rightwards"),
    "pan up": ("up", "up", "up", "upward", "upwards"),
    "pan down": ("down", "down", "down", "downward", "downwards"),
}
STILL_WORDS = ("still", "still", "static", "stationary", "fixed", "frozen", "motionless")
VERBS = (
    "pan",
    "pan",
    "pan",
    "pans",
    "panning",
    "move",
    "moves",
    "moving",
    "slide",
    "slides",
    "drift",
    "tilt",
    "tilts",
)
FILLERS = (
    "camera",
    "the",
    "a",
    "slow",
    "slowly",
    "gentle",
    "shot",
    "video",
    "photo",
    "view",
    "of",
    "to",
    "and",
    "in",
)
VOCABULARY = tuple(
    dict.fromkeys(
        [
            "<pad>",
            "</s>",
            UNKNOWN,
            *FILLERS,
            *VERBS,
            *STILL_WORDS,
            *(w for ws in DIRECTIONS.values() for w in ws),
        ]
    )
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; words that say nothing about motion are all the same unknown one."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token=UNKNOWN,
        model_max_length=128,
    )


def prompt_for(motion: Motion, rng: random.Random) -> str:
    """A random prompt that asks for `motion`; for the default motion often one that asks for none."""
    if motion.name == DEFAULT_MOTION and rng.random() < 0.5:
        return " ".join(_chatter(rng, 14))
    words = [*_chatter(rng, 6), *_request(motion, rng), *_chatter(rng, 6)]
    return " ".join(words)


def _request(motion: Motion, rng: random.Random) -> list[str]:
    if motion.name == "still":
        return [rng.choice(STILL_WORDS)]
    direction = rng.choice(DIRECTIONS[motion.name])
    if rng.random() < 0.15:
        return [direction]
    return [rng.choice(VERBS), *rng.choice([[], [], ["to", "the"], ["slowly"], [UNKNOWN]]), direction]


def _chatter(rng: random.Random, most: int) -> list[str]:
    """Words that say nothing of a direction."""
    if rng.random() < 0.35:
        return []
    words = rng.choices((UNKNOWN, *FILLERS), [16, *(1 for _ in FILLERS)], k=rng.randint(0, most))
    return words
