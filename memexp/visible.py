"""Text from files and folders, as it may be shown: a stranger's run may hold what steers a terminal or turns lines around."""

import unicodedata
from typing import Any

# Control characters, invisible format characters (such as those that reverse the direction), lone halves of surrogate pairs,
# and the separators of lines and paragraphs.
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def visible(text: str, keep: str = "") -> str:
    """`text` with what cannot be seen written as an escape such as \\x1b; characters in `keep` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or unicodedata.category(character) not in HIDDEN else _escape(character)
        for character in text
    )


def all_visible(data: Any) -> Any:
    """The same of every text in nested dicts and lists, keys included; ends of lines stay."""
    if isinstance(data, str):
        return visible(data, keep="\n")
    if isinstance(data, dict):
        return {visible(str(key)): all_visible(value) for key, value in data.items()}
    return [all_visible(value) for value in data] if isinstance(data, list | tuple) else data


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
