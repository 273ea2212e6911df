"""A teacher without a language model: a function for each kind of question writes the answer from the facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recllm.teachers.protocol import Answer, Question, TeacherError


class Template:
    """Answers at once, for nothing, and always the same.

    templates: kind -> function of the facts that returns text and depends on nothing else. version: raise it when a
    function writes another text, or a ledger will go on giving the old one.
    """

    batch = 1024

    def __init__(self, templates: Mapping[str, Callable[[Mapping[str, Any]], str]], version: int = 1) -> None:
        self.templates, self.name = dict(templates), f"template {version}"

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One text a question; token counts are 0.

        Raises:
            TeacherError: no template for a question's kind, or the facts lack what the template reads.
        """
        answers: list[Answer] = []
        for question in questions:
            if question.kind not in self.templates:
                known = ", ".join(sorted(self.templates)) or "none"
                raise TeacherError(f"no template for questions of kind {question.kind!r}; there are: {known}", answers)
            try:
                text = self.templates[question.kind](question.facts)
            except KeyError as error:
                missing = f"the template of kind {question.kind!r} needs the fact {error}, got {sorted(question.facts)}"
                raise TeacherError(missing, answers) from error
            answers.append(Answer(text, 0, 0, "stop"))
        return answers
