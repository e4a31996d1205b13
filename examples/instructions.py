"""Meta-train adapters on tasks of prompts and answers, adapt them to a new task, and generate.

    python examples/instructions.py --model MODEL --data tasks.jsonl [--iterations 200]

Each line of the file is a row such as {"task": "capitals", "prompt": "France?", "answer": "Paris"}.
One task in five is held out; the program adapts to one of these from a few of its rows, writes the
adapter in peft's format, loads it again as anybody would, and lets it answer prompts that it has
not seen. Needs `pip install "fastmaml[text]"`.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

import fastmaml as fm
from fastmaml.integrations import transformers as language

# Of a property of transformers' models that peft reads.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def generated(model: Any, words: Any, ids: torch.Tensor) -> str:
    """What the model answers to a prompt."""
    with torch.no_grad():
        found = model.generate(
            input_ids=ids[None], max_new_tokens=16, do_sample=False, pad_token_id=words.pad_token_id
        )
    return str(words.decode(found[0, len(ids) :], skip_special_tokens=True)).strip()


def main() -> None:
    """Meta-train, adapt, save, load and generate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="folder, or hub")
    parser.add_argument("--data", required=True, help="rows of task, prompt and answer")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3, help="inner steps")
    parser.add_argument("--lr", type=float, default=0.1, help="of the inner steps")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a text")
    parser.add_argument("--out", type=Path, default=Path("runs/adapter"))
    options = parser.parse_args()
    torch.manual_seed(0)

    words = language.tokenizer(options.model)
    count = len(fm.episodes.instructions(options.data, words, max_length=options.length).names)
    common = {"test_tasks": max(count // 5, 1), "max_length": options.length}
    train = fm.episodes.instructions(options.data, words, tasks=4, **common)
    test = fm.episodes.instructions(options.data, words, tasks=1, split="test", **common)
    print(train, test, sep="\n")

    model = language.language_model(
        options.model, dropout=0.0, lora=language.Lora(rank=options.rank)
    )
    maml = fm.MAML(model, lr=options.lr, steps=options.steps, loss=fm.losses.causal)
    optimizer = torch.optim.AdamW(maml.parameters(), 3e-4)
    for iteration, episodes in zip(range(options.iterations), train, strict=False):
        out = maml(episodes)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(maml.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 10 == 0:
            print(f"{iteration:4}  loss {out.loss:.3f}", flush=True)

    maml.eval()
    task = test.sample()
    for step, out in enumerate(maml.evaluate_each_step(task)):
        print(f"{task.names[0]}: loss {out.loss:.3f} after {step} inner steps")
    learner = maml.adapt_to(task.support.map(lambda x: x[0]))
    language.save_pretrained(learner, options.out, words)

    from peft import AutoPeftModelForCausalLM

    loaded = AutoPeftModelForCausalLM.from_pretrained(options.out)
    for ids, labels in zip(task.query.inputs["input_ids"][0], task.query.targets[0], strict=True):
        answer = labels >= 0
        prompt = ids[: int(answer.nonzero()[0])]
        right = words.decode(ids[answer], skip_special_tokens=True).strip()
        print(f"{words.decode(prompt)!r}: {generated(loaded, words, prompt)!r}, right: {right!r}")


if __name__ == "__main__":
    main()
