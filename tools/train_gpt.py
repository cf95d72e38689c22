"""A small GPT-2 for benches, trained from scratch on a text, as a Hugging Face folder with its tokenizer.

    python tools/train_gpt.py --data tinyshakespeare.txt.gz --output gpt

The text is cut into lines of about 400 characters. The last tenth of them is held out: `test.txt`, beside the model and
`train.txt`, a sample a line. The clock ends the training, so other machines get other weights; `--steps` ends it at a
step instead.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from train_vit import fit

WIDTH, HEADS, LAYERS, CONTEXT, VOCABULARY = 192, 6, 6, 128, 512
BATCH, RATE = 16, 2e-3
LINE = 400
END = "<|endoftext|>"


def read_lines(path: Path) -> list[str]:
    """The text in lines, cut between words."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return textwrap.wrap(" ".join(text.split()), LINE, break_on_hyphens=False)


def learn_tokenizer(lines: list[str]) -> Any:
    """Byte-level BPE: it can read any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore[reportAttributeAccessIssue]
        add_prefix_space=False
    )
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def build(end: int) -> Any:
    """Without dropout: a few minutes are too few to overfit."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return GPT2LMHeadModel(config)


def train(model: Any, ids: Tensor, minutes: float, steps: int | None) -> int:
    """Returns how many steps it took."""

    def loss(_share: float) -> Tensor:
        starts = torch.randint(len(ids) - CONTEXT + 1, (BATCH, 1))
        batch = ids[starts + torch.arange(CONTEXT)]
        return model(input_ids=batch, labels=batch).loss

    return fit(model, loss, RATE, minutes, steps)


def perplexity(model: Any, tokenizer: Any, lines: list[str]) -> float:
    """Of every token after the first, in lines cut at the context, as a bench reads them."""
    total, count = 0.0, 0
    with torch.no_grad():
        for line in lines:
            ids = torch.tensor([tokenizer(line, truncation=True, max_length=CONTEXT)["input_ids"]])
            tokens = ids.shape[1] - 1
            total, count = total + tokens * float(model(input_ids=ids, labels=ids).loss), count + tokens
    return float(torch.tensor(total / count).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text file, may be gzipped")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=5, help="of training")
    parser.add_argument("--steps", type=int, help="train for so many steps instead")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    lines = read_lines(arguments.data)
    seen = len(lines) * 9 // 10
    samples = {"train": lines[:seen], "test": lines[seen:]}
    tokenizer = learn_tokenizer(samples["train"])
    # A space ends the last word of every line, as it does inside of lines.
    ids = torch.tensor(tokenizer.backend_tokenizer.encode(" ".join(samples["train"])).ids)
    model = build(tokenizer.eos_token_id)
    made = train(model, ids, arguments.minutes, arguments.steps)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    for name, part in samples.items():
        (arguments.output / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {made} steps, {made * BATCH * CONTEXT / len(ids):.1f} epochs of {len(ids)} tokens")
    held = perplexity(model, tokenizer, samples["test"])
    print(f"perplexity per token on {len(samples['test'])} lines of test.txt: {held:.2f}")


if __name__ == "__main__":
    main()
