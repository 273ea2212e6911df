"""A language model on this machine as a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from recllm.device import device_here
from recllm.provenance import fingerprint
from recllm.teachers.protocol import Answer, Question, Sampling, TeacherError, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GumbelNoise(LogitsProcessor):
    """Turns the greedy choice into a draw from softmax(scores), each row from a stream of its own.

    The largest of scores plus independent Gumbel noise is such a draw (Gumbel 1954; Maddison et al. 2014, A* sampling).
    `generate` draws a whole batch from one stream, where an answer would depend on its neighbours. seeds: one a row.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (batch, vocabulary) with noise; what is -inf stays so."""
        noise_BV = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for noise_V, stream in zip(noise_BV, self.streams, strict=True):
            noise_V.exponential_(generator=stream)
        return scores.float() - noise_BV.clamp_min(1e-30).log()


class Local:
    """Answers chats in left-padded batches.

    The draws of an answer depend on its question and the seed, not on the batch it is in; neither does a greedy
    answer, up to the rounding of padded batches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        sampling: Sampling | None = None,
        batch: int = 16,
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(f"{name} has no chat template; take a model that was tuned on chats")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.model, self.tokenizer, self.sampling = model.eval(), tokenizer, sampling or Sampling()
        self.name, self.batch = f"local:{name} {self.sampling}", batch

    @classmethod
    def load(cls, source: str | Path, sampling: Sampling | None = None, batch: int = 16) -> Local:
        """The model in a folder, or the Hub's by its id; the name tells the weights, so that a model trained anew in
        the same folder is another teacher."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True).to(device_here())
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        if Path(source).is_dir():
            name = f"{Path(source).name}@{fingerprint(source)[:12]}"
        else:
            name = f"{source}@{str(model.config._commit_hash)[:12]}"
        return cls(model, tokenizer, name, sampling, batch)

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions.

        Raises:
            TeacherError: a prompt and its answer would not fit the model's context.
        """
        prompts = self.prompts([question.messages for question in questions])
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        ids_BT = self.model.generate(
            input_ids=inputs["input_ids"].to(self.model.device),
            attention_mask=inputs["attention_mask"].to(self.model.device),
            do_sample=False,
            logits_processor=self._draws(questions),
            max_new_tokens=self.sampling.max_tokens,
            eos_token_id=sorted(self.ends()),
            pad_token_id=self.tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        return [self._read(ids, len(prompt)) for ids, prompt in zip(ids_BT.tolist(), prompts, strict=True)]

    def prompts(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """The tokens of each chat up to where the assistant answers.

        Raises:
            TeacherError: as `answer`.
        """
        plain = [[dict(message) for message in chat] for chat in chats]
        texts = self.tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._check_lengths([len(prompt) for prompt in prompts])
        return prompts

    def _draws(self, questions: Sequence[Question]) -> list[LogitsProcessor]:
        if self.sampling.temperature == 0:
            return []
        # 63 bits, which every generator takes.
        seeds = [int(digest(question, f"seed {self.sampling.seed}"), 16) >> 193 for question in questions]
        warpers = [TemperatureLogitsWarper(self.sampling.temperature)]
        if self.sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(self.sampling.top_p))
        return [*warpers, GumbelNoise(seeds, self.model.device)]

    def _read(self, ids: list[int], prompt_tokens: int) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self.ends()), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        written = len(ids) if end is None else end + 1
        return Answer(text, prompt_tokens, written, "length" if end is None else "stop")

    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own, self.tokenizer.eos_token_id]
        return {end for end in ends if end is not None}

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(lengths) + self.sampling.max_tokens
        if room is not None and longest > room:
            row = lengths.index(max(lengths))
            raise TeacherError(
                f"question {row} of the batch has {max(lengths)} tokens, which with max_tokens="
                f"{self.sampling.max_tokens} exceeds the context of {room}; shorten the prompt or lower max_tokens"
            )
