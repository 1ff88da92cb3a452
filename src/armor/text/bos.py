"""BOS: the token that marks the beginning of a text, and whether windows begin with it."""

from __future__ import annotations

from typing import Any

from armor.errors import ArmorError

#: What ``--bos`` takes. "auto" is "yes" where the tokenizer itself puts BOS before a text.
BOS_CHOICES = ("auto", "yes", "no")


def resolve_bos(choice: str, tokenizer: Any) -> str:
    """`choice` with "auto" decided: "yes" or "no".

    Raises:
        ArmorError: another choice; "yes", and the tokenizer has no BOS token.
    """
    if choice not in BOS_CHOICES:
        raise ArmorError(f"unknown --bos {choice!r}; valid: {', '.join(BOS_CHOICES)}")
    if choice == "no":
        return "no"
    bos = getattr(tokenizer, "bos_token_id", None)
    if choice == "yes":
        if bos is None:
            raise ArmorError("--bos yes: the tokenizer has no BOS token; take --bos no or auto")
        return "yes"
    if bos is None:
        return "no"
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return "yes" if ids[:1] == [bos] else "no"


def bos_tokens(choice: str, tokenizer: Any) -> list[int]:
    """What every window begins with: the id of BOS, or nothing. Raises as `resolve_bos`."""
    return [int(tokenizer.bos_token_id)] if resolve_bos(choice, tokenizer) == "yes" else []
