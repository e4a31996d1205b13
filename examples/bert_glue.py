"""Meta-train BERT on tasks of GLUE, then adapt it to a task that it has never seen.

    python examples/bert_glue.py [--model bert-base-uncased] [--data FOLDER] [--iterations 200]

A task is a data set: a few of its examples are the support set, others the query set. Tasks share
no labels, so each has a last layer of its own, which begins at zero and adapts with all the rest.
Without --data, GLUE comes from the Hugging Face hub. Needs `pip install "fastmaml[text]"`.
"""

import argparse

import torch

import fastmaml as fm
from fastmaml.integrations.transformers import sequence_classifier, tokenizer


def test_on(held_out: fm.episodes.Mixture, maml: fm.MAML, steps: int, batches: int) -> None:
    """Print how well the held-out tasks are learned, before and after each inner step."""
    maml.eval()
    found = [maml.evaluate_each_step(held_out.sample(), steps) for _ in range(batches)]
    for step, outs in enumerate(zip(*found, strict=True)):
        mean = torch.stack([out.accuracy for out in outs]).mean()
        print(f"{', '.join(held_out.names)} after {step} steps: {mean:.1%}")
    maml.train()


def main() -> None:
    """Meta-train, meta-test."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bert-base-uncased", help="folder, or name on the hub")
    parser.add_argument("--data", help="folder with files such as SST-2.train.jsonl.gz")
    parser.add_argument("--train", default="sst2,qnli,mnli,qqp")
    parser.add_argument("--test", default="mrpc")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=4, help="of a meta-batch")
    parser.add_argument("--examples", type=int, default=16, help="of a support or query set")
    parser.add_argument("--steps", type=int, default=3, help="inner steps")
    parser.add_argument("--length", type=int, default=64, help="most tokens of a text")
    parser.add_argument("--batches", type=int, default=10, help="meta-batches of a test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)

    words = tokenizer(options.model)
    common = {
        "data": options.data,
        "support": options.examples,
        "query": options.examples,
        "tasks": options.tasks,
        "max_length": options.length,
        "device": options.device,
    }
    train = fm.episodes.glue(options.train, words, **common)
    test = fm.episodes.glue(options.test, words, query_from="dev", seed=1, **common)

    model = sequence_classifier(options.model, classes=3, dropout=0.0).to(options.device)
    maml = fm.MAML(
        model, lr=0.1, steps=options.steps, loss=fm.losses.classification, head=fm.heads.Zero()
    )
    print(maml.explain(train.sample()))
    test_on(test, maml, options.steps, options.batches)

    optimizer = torch.optim.AdamW(maml.parameters(), 3e-5)
    for iteration, episodes in zip(range(options.iterations), train, strict=False):
        out = maml(episodes)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(maml.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 10 == 0:
            print(f"{iteration:4}  loss {out.loss:.3f}  accuracy {out.accuracy:.1%}", flush=True)
    test_on(test, maml, options.steps, options.batches)


if __name__ == "__main__":
    main()
