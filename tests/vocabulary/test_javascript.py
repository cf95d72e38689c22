"""transformers.js reads a tokenizer with fewer pieces as `tokenizers` does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from kept import javascript
from tokenizers import Tokenizer
from vocabularies import TEXTS, WORDS, content_of

from lowrank.backends.vocabulary.counts import tokenizer_of
from lowrank.backends.vocabulary.folder import rewrite_folder

pytestmark = [
    pytest.mark.device,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm"),
]


# Marks at the ends of words, or in them, of BPE it reads in another way in whole tokenizers too.
@pytest.mark.parametrize("name", ["wordpiece", "byte_bpe", "fallback_bpe", "unigram"])
def test_transformers_js_reads_fewer_pieces(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    source, target = tmp_path / "whole", tmp_path / "cut"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(content_of(name)), pad_token="[PAD]").save_pretrained(source)
    used = {i for word in WORDS[::2] for i in tokenizer_of(content_of(name)).encode(word).ids}
    rewrite_folder(source, target, used)
    (tmp_path / "texts.json").write_text(json.dumps([*TEXTS, *WORDS]))
    command = ["node", "tokens.mjs", target, tmp_path / "texts.json", tmp_path / "out.json"]
    folder = javascript("transformersjs", "@huggingface/transformers")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here = Tokenizer.from_file(str(target / "tokenizer.json"))
    here.no_padding()
    for text, there in zip([*TEXTS, *WORDS], json.loads((tmp_path / "out.json").read_text()), strict=True):
        assert there["ids"] == here.encode(text).ids
        assert "".join(there["text"].split()) == "".join(here.decode(there["ids"]).split())
