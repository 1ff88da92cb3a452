"""The texts that pruning papers report perplexity on, read the way they read them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from armor.text.sources import SEPARATOR, Source, documents, read_text


@dataclass(frozen=True)
class Protocol:
    """How a data set becomes one text.

    Attributes:
        source: ``hf:NAME:CONFIG``. split: of the data set.
        separator: between its documents. documents, windows: how many are read; None for all.
    """

    source: str
    split: str
    separator: str = SEPARATOR
    documents: int | None = None
    windows: int | None = None


PROTOCOLS = {
    "wikitext2": Protocol("hf:Salesforce/wikitext:wikitext-2-raw-v1", "test"),
    # As SparseGPT and its successors do.
    "c4": Protocol("hf:allenai/c4:en", "validation", " ", documents=1100, windows=256),
}


def protocol_of(source: Source) -> Protocol | None:
    """The protocol that `source` names; a file or folder of that name goes first."""
    if not isinstance(source, (str, os.PathLike)) or Path(source).exists():
        return None
    return PROTOCOLS.get(os.fspath(source))


def evaluation_text(source: Source, max_chars: int | None = None) -> str:
    """The text to evaluate on: of a protocol, else as `read_text` gives it.

    Raises:
        ArmorError: as `documents` does.
    """
    protocol = protocol_of(source)
    if protocol is not None:
        return _text_of(protocol)[:max_chars]
    if isinstance(source, str) and source.startswith("hf:") and max_chars is None:
        return _text_of(Protocol(source, "test"))
    return read_text(source, max_chars=max_chars)


@lru_cache(maxsize=4)  # a comparison reads them once for every model
def _text_of(protocol: Protocol) -> str:
    found = islice(documents(protocol.source, protocol.split), protocol.documents)
    return protocol.separator.join(found)
