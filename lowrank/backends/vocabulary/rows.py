"""The rows of a torch model's tables of tokens, cut to those of the pieces that stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.config_block import CONFIG_FILE
from lowrank.backends.torch.huggingface import from_folder, quiet, read_config
from lowrank.backends.torch.model_folder import check_same
from lowrank.backends.torch.tensors import MODEL_FILE, save_state
from lowrank.backends.vocabulary.named_ids import SIZES, Renumbering, is_named
from lowrank.backends.vocabulary.tokenizer_file import Ids
from lowrank.errors import UnsupportedModel, VocabularyError

BIAS = "final_logits_bias"
"""A bias of a head that is kept beside it, as a buffer of 1 x rows."""
PAD = "padding_idx"
TOKEN_TABLES = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte")
"""What the names of tables of tokens begin with."""


def cut_rows(model: Any, old_ids: Ids) -> None:
    """Keep only some rows of a model's table of tokens, of its head and of the head's biases, in place.

    Given the new ids of a text, the model computes what it computed for the old ones, and of each kept token the same
    logit. Ids in the model's configs, and those that its modules remember, are renumbered; ids that are gone are taken
    out of lists of tokens that are never generated.

    Args:
        model: of `transformers`; its table is an embedding, its head a linear layer, tied to the table or not.
        old_ids: for each new id the old one, as `rewrite_folder` gives them.

    Raises:
        UnsupportedModel: if its table or its head is of another form, if it has a second table of tokens, or if its
            positions are counted from the id of padding, and this would change. The model is then as it was.
        VocabularyError: if an id is none of the table's, stands there twice, or is missing though the config names it.
    """
    reader = _reader(model)
    table: nn.Embedding = reader.get_input_embeddings()
    head = _head(reader, table)
    _check_only(model, table)
    size = table.num_embeddings
    new_of = _checked(old_ids, size)
    numbering = Renumbering(new_of, size, len(old_ids))
    places = list(_places(model, table, new_of))
    changes = [change for config in _configs(model) for change in _changes(config, numbering)]
    chosen = torch.from_numpy(np.ascontiguousarray(old_ids))
    with torch.no_grad(), quiet():
        for tensor in _tensors(model, table, head):
            # Rows are along the first axis, but for a bias that is kept as one row.
            rows = tensor.mT if tensor.dim() == 2 and tensor.shape[0] == 1 else tensor
            rows[: len(chosen)] = rows[chosen.to(tensor.device)]
        reader.resize_token_embeddings(len(chosen), mean_resizing=False)
    for owner, name, value in (*changes, *places):
        setattr(owner, name, value)


def _reader(model: Any) -> Any:
    """The model, or the part of it that reads text, which has the table.

    Raises:
        UnsupportedModel: if none has one, or if it is of a class that has tables of its own beside.
    """
    part = next((p for p in (model, getattr(model, "text_model", None)) if _table(p) is not None), None)
    if part is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no table of tokens that can be cut; cut the vocabulary of a model that reads "
            "text, before its table is factored"
        )
    if "mean_resizing" not in signature(part.resize_token_embeddings).parameters:
        raise UnsupportedModel(
            f"{type(part).__name__} has tables of tokens that only its class knows; keep the vocabulary whole"
        )
    return part


def _table(part: Any) -> nn.Embedding | None:
    """The table of tokens of a model or a part of one, if it has one of the usual form."""
    try:
        table = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table if isinstance(table, nn.Embedding) else None


def _head(reader: Any, table: nn.Embedding) -> nn.Linear | None:
    """The layer that gives a logit for each token, if there is one.

    Raises:
        UnsupportedModel: if it is of another form, or has other rows than the table.
    """
    head = reader.get_output_embeddings()
    if head is not None and (not isinstance(head, nn.Linear) or head.out_features != table.num_embeddings):
        raise UnsupportedModel(
            f"{type(reader).__name__} reads {table.num_embeddings:,} tokens, and its head ({type(head).__name__}) "
            f"writes {getattr(head, 'out_features', '?')}; only a linear layer with as many can be cut with the table: "
            "keep the vocabulary whole"
        )
    return head


def _check_only(model: Any, table: nn.Embedding) -> None:
    """Check that no other table has rows for the same tokens.

    Raises:
        UnsupportedModel: if one does, as in models with an embedding for each layer.
    """
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or module.weight is table.weight or "position" in name:
            continue
        if module.num_embeddings == table.num_embeddings or name.startswith(TOKEN_TABLES):
            raise UnsupportedModel(
                f"{path} is a second table of tokens, of {module.num_embeddings:,} rows, which would not be cut with "
                "the first; keep the vocabulary whole"
            )


def _checked(old_ids: Ids, size: int) -> dict[int, int]:
    """From old ids to new ones."""
    new_of = {int(old): new for new, old in enumerate(old_ids)}
    if not new_of or len(new_of) != len(old_ids) or min(new_of) < 0 or max(new_of) >= size:
        raise VocabularyError(
            f"{len(old_ids):,} rows are to stay of a table of {size:,}, but the ids are not all different and among "
            "its own; give those that were found with the tokenizer of this model"
        )
    return new_of


def _tensors(model: Any, table: nn.Embedding, head: nn.Linear | None) -> list[Tensor]:
    """The tensors with a row for each token, each once, however many names it has."""
    found = [table.weight]
    found += [] if head is None else [head.weight, *([head.bias] if head.bias is not None else [])]
    found += [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == BIAS]
    return list({id(tensor): tensor.data for tensor in found}.values())


def _places(model: Any, table: nn.Embedding, new_of: Mapping[int, int]) -> Iterator[tuple[Any, str, int]]:
    """Modules that remember ids or the size of the table: each with the attribute, and its new value.

    Raises:
        UnsupportedModel: if positions would be counted anew.
    """
    numbering = Renumbering(new_of, table.num_embeddings, len(new_of))
    for name, module in model.named_modules():
        padding = getattr(module, PAD, None)
        of_table = isinstance(module, nn.Embedding) and module.weight is table.weight
        if isinstance(padding, int) and "position" in name.rpartition(".")[2]:
            if new_of.get(padding, padding) != padding:
                raise UnsupportedModel(
                    f"{name} counts positions from the id of padding, {padding}, which would become "
                    f"{new_of[padding]}; let all ids below it stay"
                )
        elif isinstance(padding, int) and (of_table or not isinstance(module, nn.Embedding)):
            yield module, PAD, _required(PAD, padding, numbering)
        for key, value in vars(module).items():
            if isinstance(value, int) and (is_named(key) or key in SIZES):
                yield module, key, _required(key, value, numbering)


def _configs(model: Any) -> list[Any]:
    """The configs of a model and its parts, each once."""
    found = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    generation = getattr(model, "generation_config", None)
    waiting, every = [*found.values(), *([generation] if generation is not None else [])], dict[int, Any]()
    while waiting:
        config = waiting.pop()
        if id(config) not in every and hasattr(config, "to_dict"):
            every[id(config)] = config
            waiting += vars(config).values()
    return list(every.values())


def _changes(config: Any, numbering: Renumbering) -> Iterator[tuple[Any, str, Any]]:
    """The attributes of a config that change, with their new values."""
    told = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    if not numbering.is_foreign(told):
        for key, value in told.items():
            new = _required(key, value, numbering)
            if new != value:
                yield config, key, new


def _required(key: str, value: Any, numbering: Renumbering) -> Any:
    """A value with new ids.

    Raises:
        VocabularyError: if an id in it is gone.
    """
    try:
        return numbering.entry("pad_token_id" if key == PAD else key, value)
    except KeyError as error:
        raise VocabularyError(
            f"the token {error} is to go, but the model needs it ({key}); let it stay: `rewrite_folder` sees to that"
        ) from None


def write_rows(source: Path, target: Path, old_ids: Ids) -> list[str]:
    """Write the weights of a model folder with fewer rows to the folder that `rewrite_folder` wrote.

    Tensors that the model's files lack are not written, so that they are not taken for trained ones.

    Args:
        source: a Hugging Face folder.
        target: the other folder, whose config tells of the rows.
        old_ids: for each new id the old one.

    Returns:
        Sentences about tensors of the files that are not of the model.

    Raises:
        UnsupportedModel: if the model cannot be built, or its rows cannot be cut.
        ArtifactError: if what was written is read as another model.
    """
    module, reading = from_folder(source, read_config(source / CONFIG_FILE))
    cut_rows(module, old_ids)
    state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in reading.missing}
    save_state(state, target / MODEL_FILE)
    loaded, _ = from_folder(target, read_config(target / CONFIG_FILE))
    check_same(target, module, loaded, reading.missing)
    return list(reading.notes)
