"""Every block of code on the pages runs, in order, on tiny models; those that cannot say why, in options that exist."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import GIVEN, PAGES, ROOT, Reader, commands, parses, read_page
from conftest import Outcome

QUICK = {"README.md"}
"""Pages of the quick suite; the others are slow."""
ELSEWHERE = {"CONTRIBUTING.md"}
"""Done by a test of its own."""
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def page_parameters() -> list[object]:
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in NAMES
        if name not in ELSEWHERE and read_page(ROOT / name).blocks
    ]


@pytest.mark.usefixtures("forget_written_modules")
@pytest.mark.parametrize("name", page_parameters())
def test_blocks_run(name: str, tmp_path: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = read_page(ROOT / name)
    for given in dict.fromkeys(["my-model", "sentences.txt", *page.given]):
        GIVEN[given](tmp_path)
    reader = Reader(tmp_path, cli)
    for block in page.blocks:
        if block.reason is None:
            reader.run(block)


def test_what_is_not_run_has_a_reason_and_options_that_exist() -> None:
    counted: Counter[str] = Counter()
    for path in PAGES:
        for block in read_page(path).blocks:
            counted[block.reason or ("shown" if block.language == "text" else "run")] += 1
            if block.reason is not None and block.language == "sh":
                for words in commands(block):
                    if words[0] == "lowrank":
                        assert parses(words[1:]) is None, f"{block.page}:{block.line}: {shlex.join(words)}"
    print(dict(counted))
    assert counted["run"] > sum(n for reason, n in counted.items() if reason != "run") / 2


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_have_options_that_exist(name: str) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"`(lowrank [a-z][^`]*)`", text):
        words = shlex.split(command.replace("MINUTES", "1"))[1:]
        wrong = parses(words)
        assert wrong is None or wrong.startswith("Missing"), f"{command}: {wrong}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in PAGES:
        code = re.findall(r"```sh\n(.*?)```|`([^`\n]*)`", path.read_text(encoding="utf-8"), re.DOTALL)
        for target in {t for pair in code for text in pair for t in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{name}: {target}"
