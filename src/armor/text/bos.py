"""BOS: the token that marks the beginning of a text, and whether windows begin with it."""

from __future__ import annotations

from typing import Any

from armor.errors import ArmorError

#: What ``--bos`` takes. "auto" is "always" where the tokenizer itself puts BOS before a text.
BOS_CHOICES = ("auto", "always", "never")
#: The names of earlier versions, which records hold and commands still take.
_FORMER = {"yes": "always", "no": "never"}


def bos_choice(given: Any) -> Any:
    """`given` by its name of today: "yes" is "always" and "no" is "never"; all else as it is."""
    return _FORMER.get(given, given) if isinstance(given, str) else given


def resolve_bos(choice: str, tokenizer: Any) -> str:
    """`choice` with "auto" decided: "always" or "never".

    Raises:
        ArmorError: another choice; "always", and the tokenizer has no BOS token.
    """
    choice = bos_choice(choice)
    if choice not in BOS_CHOICES:
        raise ArmorError(f"unknown --bos {choice!r}; valid: {', '.join(BOS_CHOICES)}")
    if choice == "never":
        return choice
    bos = getattr(tokenizer, "bos_token_id", None)
    if choice == "always":
        if bos is None:
            raise ArmorError(
                "--bos always: the tokenizer has no BOS token; take --bos never or auto"
            )
        return choice
    if bos is None:
        return "never"
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return "always" if ids[:1] == [bos] else "never"


def bos_tokens(choice: str, tokenizer: Any) -> list[int]:
    """What every window begins with: the id of BOS, or nothing. Raises as `resolve_bos`."""
    return [int(tokenizer.bos_token_id)] if resolve_bos(choice, tokenizer) == "always" else []


def bos_words(begins: bool) -> str:
    """What stands beside the window of every perplexity: whether it begins with BOS."""
    return "with BOS" if begins else "no BOS"
