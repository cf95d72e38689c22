"""Settings: what was written is read again, and old ones mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest

import lowrank
from lowrank.errors import ArtifactError, LowRankError
from lowrank.pipeline import Settings


@pytest.mark.parametrize("settings", [Settings(), Settings(calib="self"), Settings(calib="none", mixed=False)])
def test_what_is_written_is_read(settings: Settings) -> None:
    content = settings.to_json()
    assert Settings.from_json(content).to_json() == content and content["calib"] == settings.calib


def test_before_text_was_mixed_none_was() -> None:
    content = Settings().to_json()
    del content["mixed"]
    assert Settings.from_json(content).mixed is False
    with pytest.raises(ArtifactError, match="no valid setting 'mixed'"):
        Settings.from_json({**content, "mixed": 1})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no"),
        ("{", "cannot read"),
        ('{"schema": "lowrank.report/1.0", "groups": []}', "plan"),
        ('{"schema": "lowrank.plan/1.0", "weights": []}', 'no list "groups"'),
    ],
)
def test_a_file_that_is_no_plan_is_refused_before_the_model_is_opened(
    content: str | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(LowRankError, match=said):
        lowrank.compress("no-such-model", plan=tmp_path / "plan.json", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
