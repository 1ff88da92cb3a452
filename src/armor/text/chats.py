"""Chats: conversations of several messages, and the template that writes them as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError, reason

#: The fields of a row that hold a chat.
CHAT_FIELDS = ("messages", "conversations")
#: What ShareGPT's files call the roles.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Chat:
    """One conversation, not yet text.

    Attributes:
        messages: each a mapping with "role" and "content", as ``apply_chat_template`` takes them.
        where: the row it comes from, for messages of errors.
    """

    messages: tuple[Mapping[str, Any], ...]
    where: str

    @classmethod
    def of(cls, messages: list[Any], where: str) -> Chat | None:
        """The chat in a row; None if nothing is said in it.

        Args:
            messages: mappings with "role" and "content", or with "from" and "value".

        Raises:
            ArmorError: anything else.
        """
        found = tuple(_message(message, where) for message in messages)
        return cls(found, where) if any(map(_says_something, found)) else None


class ChatTemplate:
    """A tokenizer's chat template. Two that write alike are equal, whichever tokenizer has them."""

    def __init__(self, tokenizer: Any) -> None:
        """Args: tokenizer: a Hugging Face tokenizer, with or without a template."""
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self._has_one = bool(template)
        self._key = repr((template, getattr(tokenizer, "special_tokens_map", None)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def render(self, chat: Chat) -> str:
        """The text of `chat`. Raises `ArmorError` where there is no template, or it refuses."""
        if not self._has_one:
            raise ArmorError(
                f"{chat.where}: a chat, but the tokenizer has no chat template; write each chat as"
                ' text: a line {"text": "..."}'
            )
        try:
            messages = [dict(message) for message in chat.messages]
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:
            # A template may raise anything, on purpose (roles that must alternate) or by mistake.
            raise ArmorError(
                f"{chat.where}: the tokenizer's chat template fails on this chat"
                f" ({reason(error)}); leave it out, or write it as text"
            ) from None


def _message(message: Any, where: str) -> Mapping[str, Any]:
    if isinstance(message, dict):
        if isinstance(message.get("role"), str):
            return message
        role, value = message.get("from"), message.get("value")
        if isinstance(role, str) and (value is None or isinstance(value, str)):
            return {"role": _ROLES.get(role, role), "content": value or ""}
    raise ArmorError(
        f'{where}: not a list of messages; each has "role" and "content", or "from" and "value"'
    )


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content)
