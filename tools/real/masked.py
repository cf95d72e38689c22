"""rxnmapper 0.4.3 (MIT): ALBERT, one layer applied twelve times, which fills in masked tokens of reactions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

import lowrank
from lowrank.backends.inputs import Feed
from lowrank.evaluate.graph import open_graph
from real.fetch import importable, unpacked
from real.reactions import reactions
from real.subject import Real

PACKAGE = "rxnmapper==0.4.3"
TESTS = 80
MASKED = 0.15


def subject(folder: Path) -> Real:
    """The model in a folder as Hugging Face has them, with a tokenizer.json in place of its own code."""
    importable(folder, "rdkit")
    package = unpacked(folder, PACKAGE) / "rxnmapper"
    source = folder / "rxnmapper"
    if not source.exists():
        shutil.copytree(next((package / "models" / "transformers").iterdir()), source)
        write_tokenizer(source, package / "smiles_utils.py")
    texts = reactions()
    calib = folder / "reactions.txt"
    calib.write_text("\n".join(texts[TESTS:]) + "\n", encoding="utf-8")
    dense = folder / "rxnmapper-dense"
    if not (dense / "model.onnx").exists():
        lowrank.export(str(source), dense)
    judge = Masked(Tokenizer.from_file(str(source / "tokenizer.json")), texts[:TESTS], dense / "model.onnx")
    return Real(
        name="rxnmapper",
        source=source,
        settings=lowrank.Settings(calib=str(calib), mixed=False),
        dense=dense / "model.onnx",
        example=judge.example,
        judge=judge,
    )


def write_tokenizer(folder: Path, module: Path) -> None:
    """What the package's code does to a reaction, as a tokenizer.json; its pattern is read, not run."""
    found = re.search(r'SMI_REGEX_PATTERN = r"(.*)"', module.read_text(encoding="utf-8"))
    assert found
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(found[1]), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)  # pyright: ignore[reportAttributeAccessIssue]
    names = {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer.add_special_tokens(list(names.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    config |= {f"{name}_token": word for name, word in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


class Masked:
    """How often a graph puts the dense model's token in a masked place, and how often the right one."""

    def __init__(self, tokenizer: Tokenizer, texts: tuple[str, ...], dense: Path) -> None:
        """Mask some tokens of each reaction, and let the dense model fill them in."""
        pad, unknown = (tokenizer.token_to_id(word) for word in ("[PAD]", "[MASK]"))
        assert pad is not None and unknown is not None
        tokenizer.enable_padding(pad_id=pad)
        lines = tokenizer.encode_batch(list(texts))
        ids = np.array([line.ids for line in lines])
        plain = np.array([line.special_tokens_mask for line in lines]) == 0
        self._places = plain & (np.random.default_rng(0).random(ids.shape) < MASKED)
        self._right = ids[self._places]
        hidden = np.where(self._places, unknown, ids)
        mask = np.array([line.attention_mask for line in lines])
        self._feed = {"input_ids": hidden, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        length = int(np.median(mask.sum(1)))
        self.example: Feed = {name: values[:1, :length] for name, values in self._feed.items()}
        self._dense = self._filled(dense)

    def _filled(self, path: Path) -> np.ndarray:
        session = open_graph(path, 2)
        names = [i.name for i in session.get_inputs()]
        parts = [slice(i, i + 16) for i in range(0, len(self._places), 16)]
        outputs = [session.run(["logits"], {name: self._feed[name][part] for name in names})[0] for part in parts]
        return np.concatenate(outputs).argmax(-1)[self._places]

    def __call__(self, path: Path) -> Mapping[str, float]:
        """Both shares."""
        found = self._filled(path)
        return {
            "masked tokens as dense": float((found == self._dense).mean()),
            "masked tokens right": float((found == self._right).mean()),
        }
