"""The planner tests' worlds, and the tokenizer that their texts are written with."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

_WORLDS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("worlds.py")), run_name="planner_worlds"))


@pytest.fixture(scope="session")
def worlds():
    """The functions of worlds.py."""
    return _WORLDS


@pytest.fixture(scope="session")
def tokenizer():
    """A small BPE with the lean template, the sid tokens of the worlds and TRL's response parser."""
    from recllm.planner.texts import example_calls
    from recllm.training.chat import set_chat_template
    from recllm.training.tiny_lm import train_tokenizer

    texts = [*example_calls(), "Length 3. Span 4. Likes Drama, Comedy. Recent ", "War Noir user assistant tool"]
    made = train_tokenizer(texts, 500)
    made.add_tokens([f"<{letter}_{code}>" for letter in "ab" for code in range(12)])
    set_chat_template(made, "lean")
    return made
