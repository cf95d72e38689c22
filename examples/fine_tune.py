"""Fine-tune a compressed encoder on labels, with an ordinary training loop: its factors are plain `nn.Linear`s.

    python examples/fine_tune.py lowrank-run --train sst2_train.tsv --test sst2_dev.tsv

The tables have a column `sentence` and a column `label`. A linear head on the mean of the hidden states is trained
first by itself, then with the whole model.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

import lowrank

BATCH = 32


def read(path: Path, rows: int | None = None) -> tuple[list[str], Tensor]:
    """Sentences and labels of the first rows."""
    with path.open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))[:rows]
    return [row["sentence"] for row in table], torch.tensor([int(row["label"]) for row in table])


class Classifier(nn.Module):
    """An encoder with a linear head on the mean of its hidden states."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, encoded: Any) -> Tensor:
        """Logits of a batch that a tokenizer gave."""
        mask = encoded["attention_mask"][:, :, None]
        hidden = self.encoder(**encoded).last_hidden_state
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def accuracy(model: Classifier, tokenizer: Any, sentences: list[str], labels: Tensor) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(sentences), BATCH):
            encoded = tokenizer(sentences[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
            right += int((model(encoded).argmax(-1) == labels[start : start + BATCH]).sum())
    return right / len(sentences)


def train(model: Classifier, parameters: Any, tokenizer: Any, data: Any, steps: int, rate: float) -> None:
    """The loop that any torch model is trained with."""
    sentences, labels = data
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(sentences), (BATCH,))
        encoded = tokenizer([sentences[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
        loss = nn.functional.cross_entropy(model(encoded), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `lowrank compress` wrote")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(arguments.run / "model"))
    data, tests = read(arguments.train), read(arguments.test)
    model = Classifier(lowrank.load(arguments.run), int(data[1].max()) + 1)
    train(model, model.head.parameters(), tokenizer, data, arguments.steps // 2, 1e-2)
    print(f"accuracy with a trained head: {accuracy(model, tokenizer, *tests):.1%}")
    train(model, model.parameters(), tokenizer, data, arguments.steps, arguments.rate)
    print(f"accuracy with the factors trained too: {accuracy(model, tokenizer, *tests):.1%}")


if __name__ == "__main__":
    main()
