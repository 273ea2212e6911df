"""Chat templates: for tool calling the lean one of small models and TRL's Qwen3 one, and a stream of sids alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAN = Path(__file__).with_name("lean_chat.jinja")
_STREAM = Path(__file__).with_name("stream_chat.jinja")
TEMPLATES = ("keep", "lean", "qwen3", "stream")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the tokenizer a template with tool calls, and the parser that reads the calls back.

    `keep` leaves the tokenizer's own template and only adds the parser where TRL knows it; `lean` and `qwen3` replace
    it. `stream` is for recommenders that speak sids alone: no markers, no tool calls.

    Raises:
        ValueError: the name is unknown, or the kept template cannot render tool calls.
    """
    from trl.chat_template_utils import (
        add_response_schema,
        qwen3_chat_template,
        qwen3_template,
        supports_tool_calling,
    )

    if name not in TEMPLATES:
        raise ValueError(f"chat_template {name!r} is unknown; choose one of {', '.join(TEMPLATES)}")
    if name == "lean":
        tokenizer.chat_template = _LEAN.read_text(encoding="utf-8")
        tokenizer.response_template = qwen3_template
    elif name == "stream":
        tokenizer.chat_template = _STREAM.read_text(encoding="utf-8")
    elif name == "qwen3":
        tokenizer.chat_template = qwen3_chat_template
        add_response_schema(tokenizer)
    elif tokenizer.chat_template == _LEAN.read_text(encoding="utf-8"):
        tokenizer.response_template = qwen3_template
    else:
        if not supports_tool_calling(tokenizer):
            raise ValueError("the model's chat template cannot render tool calls; set chat_template: qwen3 (or lean)")
        if getattr(tokenizer, "response_template", None) is None:
            add_response_schema(tokenizer)
