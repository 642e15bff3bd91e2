"""The text that a model is tried on, and its tokens."""

from __future__ import annotations

import sys
from typing import Optional, Union

from . import _vocabulary

LETTERS = 32  # of a text, for each token that is needed: enough for any tokenizer
OPTION = "the text; - is standard input (default: Python's own documentation)"


def text(path: Optional[str]) -> tuple[str, str]:
    """The text, and its name."""
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:  # a Python that was packed without it
            raise ValueError("this Python has no documentation of its own: --text names a text") from None
        return "\n\n".join(topics[name] for name in sorted(topics)), "Python's documentation"
    if path == "-":
        return sys.stdin.read(), "standard input"
    with open(path, encoding="utf-8") as f:
        try:
            return f.read(), path
        except UnicodeDecodeError as e:
            raise ValueError(f"{path} is no text: {e.reason} at byte {e.start} (UTF-8 is expected)") from None


def tokens(vocabulary: Union[_vocabulary.GGUF, _vocabulary.Transformers], text: str, source: str, context: int, more: int) -> list[int]:
    """As many as a context and what follows it need, at least. Raises ValueError for a text that has fewer."""
    needed = context + more
    found = vocabulary.encode(text[: LETTERS * needed])
    if not found or not text.strip():
        raise ValueError(f"{source} is empty: there is nothing to read")
    if len(found) < needed:
        raise ValueError(f"{source} has {len(found)} tokens; a context of {context} needs {needed}: a longer --text, or shorter --contexts")
    return found
