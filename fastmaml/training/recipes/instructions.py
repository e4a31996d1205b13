"""The recipe of instructions: tasks of prompts and answers, for a model that generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from fastmaml import episodes, heads, losses
from fastmaml.episodes.batch import Batch
from fastmaml.integrations import transformers
from fastmaml.training.config import InstructionsConfig
from fastmaml.training.metrics import Choice, chosen, suited
from fastmaml.training.recipes.hub import tell
from fastmaml.training.recipes.intents import short, words
from fastmaml.training.recipes.text import Language, subset


@final
@dataclass(frozen=True)
class Instructions(Language):
    """A decoder, or a model with an encoder and a decoder, on prompts and answers."""

    config: InstructionsConfig

    def model(self) -> nn.Module:
        """The pretrained model, with adapters where these adapt."""
        config = self.config
        few = config.base != "full"
        if few and (config.scope != "lora" or config.dtype != "float32"):
            raise ValueError(
                f"base={config.base} is for weights that are frozen under adapters in float32: "
                f"give --scope lora (it is {config.scope}) and no --dtype (it is {config.dtype})."
            )
        tell("model", config.model)
        return transformers.language_model(
            config.model,
            dropout=config.dropout,
            lora=transformers.Lora(config.lora_rank) if config.scope == "lora" else None,
            dtype=torch.bfloat16 if few else None,
            quantize="int8" if config.base == "int8" else None,
        )

    def dtype(self, asked: torch.dtype) -> torch.dtype | None:
        """None where the base and the adapters have one of their own each."""
        return asked if self.config.base == "full" else None

    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The mean negative log-likelihood of the answers' tokens."""
        return losses.causal if self._decoder_start is None else losses.seq2seq

    def head(self) -> heads.Head | None:
        """None: what gives the next word is the model's own."""
        return None

    def metrics(self) -> Choice:
        """Those that the configuration names, or whether answers are right."""
        usual = "option" if self.config.choose else "exact_match,perplexity"
        asked = usual if self.config.metrics is None else self.config.metrics
        shifted = self._decoder_start is None
        suited(asked, {"every task": "tokens"}, shifted)
        found = chosen(asked, shifted)
        if "option" in found.names and not self.config.choose:
            raise ValueError("metrics has 'option', which needs every option: give --choose.")
        return found

    def metrics_of_one(self) -> Choice:
        """As `metrics`, of right answers alone."""
        asked = ",".join(name for name in words(self.config.metrics) if name != "option")
        own = replace(self.config, choose=False, metrics=asked or None)
        return replace(self, config=own).metrics()

    @property
    def validated(self) -> bool:
        """Where tasks are held out for it."""
        return _held(self.config.validation_tasks) not in (0, [])

    def episodes(self, split: str, seed: int, device: torch.device) -> Any:
        """The tasks of a split; in the test, those of the other data in turn with them."""
        config, common = self.config, self._common(seed, device)
        if not config.data:
            raise ValueError(
                "data='' names no prompts and answers: give --data FILE, FOLDER or a name on the "
                "Hugging Face hub."
            )
        held: dict[str, Any] = {
            "validation_tasks": _held(config.validation_tasks),
            "test_tasks": _held(config.test_tasks),
            "tasks_seed": config.tasks_seed,
        }
        if split == "train":
            return episodes.instructions(
                config.data, query=config.query, sampling=config.sampling, **held, **common
            )
        common |= {"query": config.test_query, "choose": config.choose, "sampling": "equal"}
        sources: dict[str, Any] = {}
        if split == "validation" or held["test_tasks"] not in (0, []):
            tell("data set", config.data)
            own = episodes.instructions(config.data, split=split, **held, **common)
            sources[short(config.data)] = own
        if split == "test" and config.test_data is not None:
            tell("data set", config.test_data)
            name = short(config.test_data, *sources)
            sources[name] = episodes.instructions(config.test_data, **common)
        if not sources:
            raise ValueError(
                "there is nothing to test on: hold out tasks with test_tasks, or give other data "
                "as test_data."
            )
        return next(iter(sources.values())) if len(sources) == 1 else episodes.InTurn(sources)

    def new_task(
        self, data: str, limit: int | None, classes: Sequence[str] | None = None
    ) -> tuple[Batch, Sequence[str]]:
        """The prompts and answers of all rows, whatever task they name."""
        wanted = ("prompt", "answer", "options", "task", "rows", "header", "separator", "chat")
        common = self._common(self.config.seed, torch.device("cpu"))
        batch = episodes.answered(
            data,
            common["tokenizer"],
            decoder_start=common["decoder_start"],
            max_length=common["max_length"],
            cache=common["cache"],
            **{name: common[name] for name in wanted},
        )
        rows = subset(len(batch.targets), limit, self.config.seed)
        return batch.map(lambda x: x[rows]), ()

    @property
    def _decoder_start(self) -> int | None:
        return transformers.decoder_start(self.config.model)

    def _common(self, seed: int, device: torch.device) -> dict[str, Any]:
        config = self.config
        options = config.options
        return self.common(seed, device) | {
            "support": config.support,
            "tasks": config.tasks,
            "prompt": config.prompt,
            "answer": config.answer,
            "options": options.split("|") if options and "|" in options else options,
            "task": config.task,
            "rows": words(config.rows) or None,
            "query_rows": words(config.query_rows) or None,
            "header": words(config.header),
            "limit": config.limit,
            "leave_out": words(config.leave_out),
            "separator": config.separator,
            "chat": config.chat,
            "decoder_start": self._decoder_start,
        }


def _held(given: str) -> int | list[str]:
    """How many tasks are held out, or which."""
    return int(given) if given.strip().isdecimal() else words(given)
