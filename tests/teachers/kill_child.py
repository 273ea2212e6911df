"""Asks a slow template teacher; the kill test ends it at random. Arguments: ledger, number of questions."""

import sys
import time

from recllm.teachers.ledger import ask
from recllm.teachers.protocol import Question
from recllm.teachers.template import Template


def main(path: str, count: int) -> None:
    # Rows of 20 kB, longer than a write buffer, so that a kill can tear one.
    teacher = Template({"why": lambda facts: f"Since {facts['item']}. " + "word " * 4000})
    teacher.batch, plain = 2, teacher.answer

    def slowly(questions):
        time.sleep(0.005)
        return plain(questions)

    teacher.answer = slowly
    ask(teacher, [Question([{"role": "user", "content": f"Why {n}?"}], {"item": n}, "why") for n in range(count)], path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
