"""``self``: the text that a model writes itself, to calibrate on where no other is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armor.errors import ArmorError
from armor.text.source import Document, Source, TextLike

_NAME = "self"


@dataclass(frozen=True)
class OwnText(Source):
    """What the dense model of a run writes; `armor.run.own_text` has it do so.

    Attributes:
        prompts: the name of a text whose lines the model goes on from; None: from nothing.
    """

    name: str
    prompts: str | None = None

    @classmethod
    def parse(cls, given: TextLike) -> OwnText | None:
        """``self`` or ``self:PROMPTS``; a file of that name goes first."""
        if not isinstance(given, str) or Path(given).exists():
            return None
        name, colon, prompts = given.partition(":")
        return cls(given, prompts or None) if name == _NAME and (prompts or not colon) else None

    def documents(self, split: str) -> Iterator[Document]:
        """Raises `ArmorError`, always: only the run of a model knows whose text it is."""
        raise ArmorError(
            f"{self.name} is what a model writes itself, for --calibration of armor prune and armor"
            " tune; here give a text"
        )
