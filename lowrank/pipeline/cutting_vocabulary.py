"""A model folder with fewer pieces in its vocabulary, and what that loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.artifacts import staged
from lowrank.artifacts.analysis import ANALYSIS_FILE
from lowrank.artifacts.files import STAGE_PREFIX, write_json
from lowrank.artifacts.lock import locked
from lowrank.backends import open_model
from lowrank.backends.vocabulary.closure import closed
from lowrank.backends.vocabulary.counts import count_ids, most_used, spared_ids, unread_ids
from lowrank.backends.vocabulary.folder import Folder, rewrite_folder
from lowrank.backends.vocabulary.pieces import read_pieces
from lowrank.backends.vocabulary.scripts import script_ids, scripts_of
from lowrank.calibrate.builtin import Style, builtin_text, judging_text
from lowrank.calibrate.text import read_samples
from lowrank.errors import ArtifactError, UnsupportedModel, VocabularyError
from lowrank.evaluate.same_texts import quality_on_texts
from lowrank.parallel import one_thread_each
from lowrank.progress import Track, silent
from lowrank.results.vocabulary import CutVocabulary, TokensOfTexts

STYLES: tuple[Style, ...] = ("lines", "prose", "technical")


@one_thread_each()
def cut_vocabulary(
    model: str | Path,
    output: str | Path,
    *,
    keep: float | None = None,
    texts: Sequence[str | Path] = (),
    column: str | None = None,
    languages: Sequence[str] = (),
    track: Track = silent,
) -> CutVocabulary:
    """Write a model folder whose tables have fewer rows, with the tokenizer that belongs to them.

    A text whose tokens all stay is read as before and gives the same outputs. Any other text is spelled by the pieces
    that are left.

    Args:
        model: a Hugging Face folder with a tokenizer.json; it stays as it is.
        output: a new or empty folder. It holds a model as any other, and `cut_vocabulary.json`.
        keep: the share of the rows that stay: what `texts` are read as, then the most used in built-in text and in
            `texts`. By default all rows that a text can be read as, so that nothing is lost; with `languages`, only
            what must stay.
        texts: files of text, as `--calib` takes them. All of their tokens stay.
        column: column or key of the texts.
        languages: codes of languages, or scripts. Every piece in their scripts stays, and letters of other scripts
            need not. Without them each letter stays, so that nothing becomes unknown.
        track: shows progress.

    Returns:
        Sizes, how much longer texts become, and the fidelity.

    Raises:
        VocabularyError: if more must stay than `keep` allows, or nothing can go.
        UnsupportedModel: if the model has no tokenizer.json, or its tables cannot be cut.
        ArtifactError: if there is something in `output`.

    Example:
        lowrank.cut_vocabulary("all-MiniLM-L6-v2", "small", keep=0.75)
    """
    source, target = Path(model).expanduser(), Path(output).expanduser()
    if keep is not None and not 0 < keep <= 1:
        raise VocabularyError(f"the share of rows to keep is {keep:g}; give one above 0 and up to 1, such as 0.75")
    _check_folders(source, target)
    own = {str(path): read_samples(Path(path).expanduser(), column) for path in texts}
    folder = Folder(source, frozenset())
    kept = _chosen(folder, keep, [text for each in own.values() for text in each], languages)
    rows = len(Folder(source, frozenset(kept)).old_ids)
    if rows >= folder.size:
        remedy = "give a smaller share" if keep is not None else "say with --keep 0.75 how many rows may stay"
        raise VocabularyError(f"all {folder.size:,} rows would stay, for none is known to be never read; {remedy}")
    with locked(target), staged(target) as stage:
        report = _written(source, stage, kept, own, track)
        write_json(stage / CutVocabulary.file, "cut_vocabulary", report.to_json())
    return report


def _check_folders(source: Path, target: Path) -> None:
    """Check that one is a model folder, and that nothing is in the other."""
    if source.is_file() or not source.exists():
        what = "is a file" if source.is_file() else "is not there"
        raise UnsupportedModel(
            f"{source} {what}; a vocabulary is cut in a Hugging Face folder with config.json and tokenizer.json, from "
            "which graphs are made afterwards"
        )
    if (source / ANALYSIS_FILE).is_file():
        raise UnsupportedModel(
            f"{source} is a run; cut the vocabulary of the original model, and compress the folder that comes of it"
        )
    if source.resolve() in target.resolve().parents:
        raise ArtifactError(
            f"{target} is inside of the model's folder, which stays as it is; give one beside it with -o"
        )
    if target.is_dir() and any(not entry.name.startswith(STAGE_PREFIX) for entry in target.iterdir()):
        raise ArtifactError(f"{target} is not empty, and nothing in it is replaced; give a new folder with -o")


def _chosen(folder: Folder, keep: float | None, texts: Sequence[str], languages: Sequence[str]) -> set[int]:
    """The ids that stay.

    Raises:
        VocabularyError: if more must than may.
    """
    content, pieces = folder.tokenizer, folder.pieces
    unread = unread_ids(content)
    if keep is None and not languages:
        return set(pieces.all_ids - unread)
    scripts = scripts_of(languages) if languages else None
    base = script_ids(pieces, scripts, whole=scripts is not None) - unread
    base |= {int(i) for i in folder.old_ids if int(i) in pieces.all_ids}
    base |= {int(i) for i in np.flatnonzero(count_ids(content, texts))}
    base = closed(pieces, spared_ids(content, base, texts))
    beside = sum(int(i) not in pieces.all_ids for i in folder.old_ids)
    least = len(base) + beside
    if keep is None:
        return base
    rows = round(keep * folder.size)
    if least > rows:
        share = math.ceil(1000 * least / folder.size) / 1000
        what = "the languages, the texts and the tokenizer" if languages else "single letters, texts and the tokenizer"
        raise VocabularyError(
            f"{least:,} of {folder.size:,} rows must stay because of {what}, and --keep {keep:g} is {rows:,}; give at "
            f"least --keep {share:g}, or {'fewer' if languages else 'name the'} languages with --keep-languages"
        )
    builtin = [text for style in STYLES for text in builtin_text(style)]
    return most_used(pieces, count_ids(content, [*builtin, *texts]), base, rows - beside, unread)


def _written(
    source: Path, stage: Path, kept: set[int], own: Mapping[str, Sequence[str]], track: Track
) -> CutVocabulary:
    """Write the folder, read it as a user would, and measure it."""
    before = open_model(source, streamed=False)
    from lowrank.backends.vocabulary.rows import write_rows

    old_ids, notes = rewrite_folder(source, stage, kept)
    notes += write_rows(source, stage, old_ids)
    after = open_model(stage, streamed=False)
    quality, remarks = quality_on_texts(before, after, track)
    content, changed = (Folder(folder, frozenset()).tokenizer for folder in (source, stage))
    read = {"built-in text": [text for style in STYLES for text in judging_text(style)], **own}
    return CutVocabulary(
        rows_before=Folder(source, frozenset()).size,
        rows_after=len(old_ids),
        params_before=before.params,
        params_after=after.params,
        bytes_before=before.nbytes,
        bytes_after=after.nbytes,
        texts=[_tokens(name, texts, content, changed) for name, texts in read.items()],
        quality=quality,
        notes=[*notes, *remarks],
    )


def _tokens(name: str, texts: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> TokensOfTexts:
    """How some texts are read by two tokenizers."""
    counted: list[int] = []
    for content in (before, after):
        counts = count_ids(content, texts)
        unknown = read_pieces(content).unknown
        counted += [int(counts.sum()), 0 if unknown is None else int(counts[unknown])]
    return TokensOfTexts(
        name=name,
        texts=len(texts),
        tokens_before=counted[0],
        unknown_before=counted[1],
        tokens_after=counted[2],
        unknown_after=counted[3],
    )
