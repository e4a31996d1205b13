"""MAML, ANIL and Prototypical Networks under Lightning's `Trainer`, one of them by `--algorithm`.

    pip install "fastmaml[tools]"
    python examples/compat/lightning_maml.py --algorithm anil --max_epochs 20

The images are made up, of 16x16.
"""

import logging
import warnings
from argparse import ArgumentParser, Namespace

import pytorch_lightning as pl
import synthetic

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.algorithms import (
    LightningANIL,
    LightningMAML,
    LightningPrototypicalNetworks,
)
from fastmaml.compat.learn2learn.utils.lightning import EpisodicBatcher


def options(command_line: list[str] | None) -> Namespace:
    """The modules' own options and those of this script."""
    parser = ArgumentParser(conflict_handler="resolve")
    parser = LightningPrototypicalNetworks.add_model_specific_args(parser)
    parser = LightningMAML.add_model_specific_args(parser)
    parser = LightningANIL.add_model_specific_args(parser)
    parser.add_argument("--algorithm", default="maml", choices=["maml", "anil", "protonet"])
    parser.add_argument("--meta_batch_size", type=int, default=4)
    parser.add_argument("--max_epochs", type=int, default=3)
    parser.add_argument("--hidden_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(command_line)


def main(command_line: list[str] | None = None) -> dict[str, float]:
    """Meta-train, and test on other classes: the means over the tasks."""
    args = options(command_line)
    pl.seed_everything(args.seed, verbose=False)

    tasksets = synthetic.tasksets(
        args.train_ways, args.train_shots + args.train_queries, (3, 16, 16)
    )
    tasks = EpisodicBatcher(
        tasksets.train, tasksets.validation, tasksets.test, epoch_length=args.meta_batch_size
    )
    model = l2l.vision.models.CNN4(
        args.train_ways, hidden_size=args.hidden_size, embedding_size=args.hidden_size
    )
    if args.algorithm == "maml":
        algorithm = LightningMAML(model, **vars(args))
    elif args.algorithm == "anil":
        algorithm = LightningANIL(model.features, model.classifier, **vars(args))
    else:
        algorithm = LightningPrototypicalNetworks(model.features, **vars(args))

    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        accumulate_grad_batches=args.meta_batch_size,  # the meta-batch, task by task
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(algorithm, tasks)
    found = trainer.test(algorithm, tasks, verbose=False)[0]
    print(f"loss {found['test_loss']:.4f}  accuracy {found['test_accuracy']:.1%}")
    return dict(found)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    main()
