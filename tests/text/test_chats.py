"""Chats: written by the tokenizer's own template, or refused with what to do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.text.chats import Chat, ChatTemplate
from armor.text.sources import check_text, read_text
from armor.text.windows import token_windows

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'robot' %}"
    "{{ raise_exception('no robots') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}"
)


@pytest.fixture
def talker(byte_tokenizer: Any) -> Any:
    """A tokenizer with a chat template."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]},
        {"conversations": [{"from": "human", "value": "More"}]},
        {"messages": []},
        {"text": "plain"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_template_writes_chats(chats: Path, talker: Any, byte_tokenizer: Any) -> None:
    text = "<user>Hi\n<assistant>Yes?\n\n\n<user>More\n\n\nplain"
    assert read_text(chats, tokenizer=talker) == text
    assert read_text(chats, 5, talker) == text[:5]
    (window,) = token_windows(chats, talker, 1, len(text))
    assert byte_tokenizer.decode(window.tolist()) == text


def test_without_a_template_the_remedy_can_be_followed(chats: Path, byte_tokenizer: Any) -> None:
    check_text(chats)  # no tokenizer is at hand yet
    for read in (
        lambda: read_text(chats, tokenizer=byte_tokenizer),
        lambda: token_windows(chats, byte_tokenizer, 1, 8),
        lambda: read_text(chats),
    ):
        with pytest.raises(ArmorError, match=r'line 1: .*no chat template; write .*\{"text"'):
            read()


def test_a_template_that_refuses(talker: Any) -> None:
    chat = Chat.of([{"role": "robot", "content": "beep"}], "FILE, line 3")
    assert chat is not None
    with pytest.raises(ArmorError, match=r"FILE, line 3: .*fails on this chat \(no robots\)"):
        ChatTemplate(talker).render(chat)


def test_templates_that_write_alike_are_equal(talker: Any, byte_tokenizer: Any) -> None:
    assert ChatTemplate(talker) == ChatTemplate(copy.deepcopy(talker))
    assert hash(ChatTemplate(talker)) == hash(ChatTemplate(copy.deepcopy(talker)))
    assert ChatTemplate(talker) != ChatTemplate(byte_tokenizer)
