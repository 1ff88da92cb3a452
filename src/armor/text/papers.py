"""The texts that pruning papers report perplexity on, read the way they read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from armor.text.hub import HubDataset
from armor.text.source import Document, Source, TextLike


@dataclass(frozen=True)
class PaperText(Source):
    """A data set by the name that papers call it.

    Attributes:
        dataset: ``hf:NAME:CONFIG``.
        test: its split to evaluate on.
        most_documents: how many of that split are read; None for all.
    """

    name: str
    dataset: str
    test: str
    separator: str = Source.separator
    most_documents: int | None = None
    windows: int | None = None
    keeps_blank = True
    is_stream = True
    has_splits = True

    @classmethod
    def parse(cls, given: TextLike) -> PaperText | None:
        """A name in `PAPER_TEXTS`; a file or folder of that name goes first."""
        if not isinstance(given, (str, os.PathLike)) or Path(given).exists():
            return None
        return PAPER_TEXTS.get(os.fspath(given))

    def documents(self, split: str) -> Iterator[Document]:
        """As `HubDataset.documents`; of "test" as many as the papers read."""
        if split == "test":
            return islice(HubDataset(self.dataset).documents(self.test), self.most_documents)
        return HubDataset(self.dataset).documents(split)


PAPER_TEXTS = {
    text.name: text
    for text in (
        PaperText("wikitext2", "hf:Salesforce/wikitext:wikitext-2-raw-v1", "test"),
        # As SparseGPT and its successors do.
        PaperText("c4", "hf:allenai/c4:en", "validation", " ", most_documents=1100, windows=256),
    )
}
