"""`lowrank vocabulary`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from lowrank.cli.options import OutputOptions, words_of
from lowrank.cli.verb import DATA, Option, Verb
from lowrank.report.terminal.terminal import notes, print_json, print_table, progress_bars, say


@Verb
def vocabulary(
    *,
    model: Annotated[Path, Option("", "Hugging Face folder with a tokenizer.json.", is_argument=True)],
    output: Annotated[Path, Option("FOLDER", "A new folder for the smaller model.", names=("--output", "-o"))],
    keep: Annotated[
        float | None, Option("SHARE", "Share of the rows that stay; by default all that a text is ever read as.")
    ] = None,
    text: Annotated[
        list[Path] | None, Option("FILE", "Text whose tokens all stay: .txt, .csv, .jsonl. Repeatable.", DATA)
    ] = None,
    column: Annotated[str | None, Option("NAMES", "Columns of a table or keys of .jsonl, with commas.", DATA)] = None,
    keep_languages: Annotated[
        list[str] | None,
        Option("CODES", "Keep all pieces in their letters: en keeps German too.", DATA, parse=words_of),
    ] = None,
    result: Annotated[OutputOptions, "as_json"],
) -> None:
    """Leave out rows of a model's table of tokens.

    FOLDER becomes a model folder of the same kind, with a tokenizer that fits it. Texts whose tokens stay are read as
    before; others take more tokens. Without --keep nothing is lost. Languages are told by their letters alone.
    """
    from lowrank import pipeline

    with progress_bars() as track:
        report = pipeline.cut_vocabulary(
            model,
            output,
            keep=keep,
            texts=text or (),
            column=column,
            languages=keep_languages or (),
            track=track,
        )
    if result.as_json:
        print_json(report.to_json())
        return
    from lowrank.report.terminal.tables import sets_table
    from lowrank.report.terminal.vocabulary import sizes_of_vocabulary, tokens_table

    print_table(sizes_of_vocabulary(report))
    print_table(tokens_table(report))
    if report.quality is not None:
        print_table(sets_table(report.quality))
    notes(report.notes)
    if report.quality is not None:
        say(report.quality.headline)
    say(f"Next: lowrank compress {output} --budget 0.3")
