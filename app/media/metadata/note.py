"""What a file says of how it was made: a title, and facts as JSON in a comment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

TITLE_CHARACTERS: Final = 300
MOST_COMMENT_BYTES: Final = 256 * 1024
# The key that says that a comment is one of ours: its value is the version.
OURS: Final = "framefit"


@dataclass(frozen=True, slots=True)
class Note:
    """A title for people and a comment for programs; both are valid UTF-8 without control characters."""

    title: str
    comment: str

    def tags(self) -> dict[str, str]:
        """The tags that the file gets."""
        return {name: text for name, text in (("title", self.title), ("comment", self.comment)) if text}


def note_of(title: str, facts: Mapping[str, Any]) -> Note:
    """Return the note of these facts, which JSON can express."""
    shown = "".join(each if each.isprintable() else " " for each in title)[:TITLE_CHARACTERS].strip()
    comment = json.dumps(facts, ensure_ascii=False, separators=(", ", ": "))
    return Note(_valid(shown), _valid("".join(map(_escaped, comment))))


def note_in(tags: Mapping[str, str]) -> Note:
    """Return the note in a file's tags, whose names may be in capitals, as they are in WebM."""
    lowered = {name.lower(): text for name, text in tags.items()}
    return Note(lowered.get("title", "").strip(), lowered.get("comment", "").strip())


def facts_in(note: Note) -> dict[str, Any] | None:
    """Return the facts in a note; None if they are not ours. A foreign file may hold anything."""
    if len(note.comment) > MOST_COMMENT_BYTES:
        return None
    try:
        facts = json.loads(note.comment)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and isinstance(facts.get(OURS), str) else None


def _escaped(each: str) -> str:
    """A character of JSON text, escaped unless it can be printed; halves of surrogate pairs stay."""
    if each.isprintable() or "\ud800" <= each <= "\udfff":
        return each
    return json.dumps(each)[1:-1]


def _valid(text: str) -> str:
    """The text without halves of surrogate pairs, which UTF-8 cannot express."""
    return text.encode("utf-8", "replace").decode("utf-8")
