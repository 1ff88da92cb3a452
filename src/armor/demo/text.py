"""The demo's text: the running Python's own documentation topics, split by topic.

The bundled model never saw the evaluation part; the calibration part is from its training text.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from armor.errors import ArmorError

# About an eighth of the text, of every kind: syntax, semantics, built-in types. Never trained on.
HELD_OUT = (
    "attribute-access",
    "calls",
    "context-managers",
    "exceptions",
    "import",
    "integers",
    "numeric-types",
    "raise",
    "typesmapping",
    "while",
)


def model_dir() -> Path:
    """The folder of the bundled model and its tokenizer, for `from_pretrained`."""
    return Path(str(resources.files("armor.demo"))) / "assets"


def evaluation_text() -> str:
    """The held-out topics, each paragraph once (about 55,000 characters).

    Raises:
        ArmorError: this Python comes without its documentation topics.
    """
    topics = _topics()
    texts = [topics[name] for name in HELD_OUT if name in topics]
    return "\n\n".join(unseen_paragraphs(texts))


def calibration_text() -> str:
    """All other topics in sorted order, each paragraph once and none that is in the evaluation.

    About 310,000 characters.

    Raises:
        ArmorError: this Python comes without its documentation topics.
    """
    topics = _topics()
    texts = [topics[name] for name in sorted(set(topics) - set(HELD_OUT))]
    return "\n\n".join(unseen_paragraphs(texts, evaluation_text()))


def unseen_paragraphs(texts: Iterable[str], seen: str = "") -> list[str]:
    """The paragraphs of `texts`, in order, each once and none that occurs in `seen`.

    Topics repeat one another's sections, so a split by topic alone would leak. Repeats are
    indented differently: paragraphs are compared up to white space.
    """
    keys = {"", *map(_key, seen.split("\n\n"))}
    kept = []
    for text in texts:
        for part in text.split("\n\n"):
            key = _key(part)
            if key not in keys:
                keys.add(key)
                kept.append(part)
    return kept


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ArmorError(
            "this Python lacks its documentation topics (module pydoc_data), which the demo reads; "
            "install the full standard library (Debian: apt install libpython3-stdlib) "
            "or use a Python from python.org"
        ) from error
    return dict(topics)


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())
