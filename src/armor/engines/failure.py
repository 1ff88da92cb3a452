"""What went wrong with a job, in a form that travels between processes."""

from __future__ import annotations

from dataclasses import dataclass

from armor.errors import ArmorError


@dataclass(frozen=True)
class Failure:
    """An exception of a job: whether it is the user's to mend, and its one line."""

    expected: bool
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Of an exception that a job raised."""
        if isinstance(error, ArmorError):
            return cls(True, str(error))
        text = " ".join(str(error).split())
        return cls(False, f"{type(error).__name__}: {text}")

    def exception(self, label: str) -> Exception:
        """What the run raises because of it; `label` says what the job was about."""
        return ArmorError(self.text) if self.expected else RuntimeError(f"{label}: {self.text}")
