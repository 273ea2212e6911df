"""A local model's answers: theirs alone whatever the batch, drawn from the right distribution, counted and bounded."""

import pytest
import torch
from transformers import LogitsProcessorList

from recllm.teachers.build import load_teacher
from recllm.teachers.local import GumbelNoise, Local
from recllm.teachers.protocol import Question, Sampling, TeacherError

pytestmark = pytest.mark.usefixtures("one_thread")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from recllm.training.tiny_lm import build_model, train_tokenizer

    tokenizer = train_tokenizer(["Why would the buyer of this item buy that item? user assistant system"], 300)
    tokenizer.chat_template = TEMPLATE
    model = build_model(tokenizer, 32, 2, 4, 128, seed=0)
    for weight in model.parameters():
        weight.data *= 2  # wide, so that scores differ clearly
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def make(folder):
    return lambda **sampling: load_teacher(f"local:{folder}", Sampling(**{"max_tokens": 12, **sampling}), batch=4)


ASKED = [Question([{"role": "user", "content": "item " * (1 + 5 * (n % 3)) + str(n)}], {"n": n}) for n in range(7)]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.7}])
def test_an_answer_does_not_depend_on_its_batch(make, sampling):
    teacher = make(**sampling)
    alone = [teacher.answer([question])[0] for question in ASKED]
    assert len({answer.text for answer in alone}) > 1
    assert teacher.answer(ASKED) == alone
    assert teacher.answer(ASKED[::-1]) == alone[::-1]
    assert teacher.answer([ASKED[3], ASKED[0], ASKED[3]]) == [alone[3], alone[0], alone[3]]


def test_draws_follow_the_seed_and_greedy_does_not(make):
    texts = {seed: [answer.text for answer in make(temperature=1.0, seed=seed).answer(ASKED)] for seed in (0, 1)}
    assert all(one != other for one, other in zip(texts[0], texts[1], strict=True))
    assert make(seed=1).answer(ASKED) == make(seed=0).answer(ASKED)
    nearly = make(temperature=1e-4).answer(ASKED)
    assert nearly == make().answer(ASKED)


def test_greedy_is_the_model_s_own_best_token(make):
    teacher = make(max_tokens=6)
    for question in ASKED[:3]:
        text = teacher.tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
        prompt = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = list(prompt)
        while len(ids) < len(prompt) + 6 and ids[-1] != teacher.tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(teacher.model(torch.tensor([ids])).logits[0, -1].argmax()))
        (answer,) = teacher.answer([question])
        assert answer.text == teacher.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(prompt), len(ids) - len(prompt))


def test_the_end_token_stops_and_is_counted_and_not_shown(make):
    teacher = make()
    end = teacher.tokenizer.eos_token_id
    letters = teacher.tokenizer.convert_tokens_to_ids(["a", "b"])

    class Scripted:
        """`a` with an end after two tokens for the first row, `b` without end for the second."""

        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, -torch.inf)
            done = (input_ids[0] == letters[0]).sum() >= 2 + before
            forced[0, end if done else letters[0]] = 0
            forced[1, letters[1]] = 0
            return forced

    before = 0
    teacher._draws = lambda questions: LogitsProcessorList([Scripted()])
    one, other = (Question([{"role": "user", "content": text}]) for text in ("1", "2"))
    text = teacher.tokenizer.apply_chat_template(one.messages, add_generation_prompt=True, tokenize=False)
    before = teacher.tokenizer(text)["input_ids"].count(letters[0])
    first, second = teacher.answer([one, other])
    assert (first.text, first.completion_tokens, first.finish) == ("aa", 3, "stop")
    assert (second.text, second.completion_tokens, second.finish) == ("b" * 12, 12, "length")


def test_noise_draws_from_the_softmax():
    scores_V = torch.tensor([0.5, 2.0, -1.0, -torch.inf, 1.0])
    draws = 20_000
    # One row of many scores that repeat: a maximum in each block of five is a draw.
    noise = GumbelNoise([7], torch.device("cpu"))
    drawn_B = noise(None, scores_V.repeat(draws)[None]).view(draws, 5).argmax(1)
    counts_V = drawn_B.bincount(minlength=5)
    expected_V = scores_V.softmax(0)
    spread_V = (expected_V * (1 - expected_V) / draws).sqrt()
    assert counts_V[3] == 0
    assert ((counts_V / draws - expected_V).abs() <= 5 * spread_V).all()


def test_a_prompt_that_does_not_fit_is_refused(make):
    long = Question([{"role": "user", "content": "item " * 120}])
    with pytest.raises(TeacherError, match=r"question 1 of the batch has \d+ tokens.*context of 128"):
        make().answer([ASKED[0], long])


def test_the_name_tells_the_weights_and_the_sampling(make, folder, tmp_path):
    teacher = make()
    changed = tmp_path / folder.name
    with torch.no_grad():
        next(teacher.model.parameters())[0, 0] += 1
    teacher.model.save_pretrained(changed)
    teacher.tokenizer.save_pretrained(changed)
    names = {make().name, make(max_tokens=3).name, Local.load(changed, Sampling(max_tokens=12)).name}
    assert len(names) == 3 and make().name in names
    assert all(name.startswith(f"local:{folder.name}@") for name in names)


def test_a_model_without_chat_template_is_refused(make):
    teacher = make()
    teacher.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Local(teacher.model, teacher.tokenizer, "base")
