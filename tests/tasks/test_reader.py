# SPDX-License-Identifier: Apache-2.0
"""Columns of later rows: those of the run where they have them, others where they do not."""

import pytest
from datasets import Dataset

from hftune.core.errors import HftuneError
from hftune.tasks.reader import read_more_rows, read_rows
from hftune.tasks.text_classification import TextClassification

TASK = TextClassification()
RUN = Dataset.from_dict({"body": ["late"], "team": ["post"], "text": ["not this one"]})
NAMED = {"text": "body", "label": "team"}


def test_the_first_rows_decide() -> None:
    selected, columns = read_rows(TASK, RUN, NAMED)
    assert columns == NAMED
    assert selected.to_list() == [{"text": "late", "label": "post"}]
    with pytest.raises(HftuneError, match="no column 'absent'"):
        read_rows(TASK, RUN, {"text": "absent"})


def test_later_rows_have_the_same_columns_or_are_looked_at_anew() -> None:
    alike = Dataset.from_dict({"text": ["x"], "body": ["gone"], "team": ["post"]})
    assert read_more_rows(TASK, alike, NAMED).to_list() == [{"text": "gone", "label": "post"}]
    others = Dataset.from_dict({"text": ["gone"], "label": ["post"]})
    assert read_more_rows(TASK, others, NAMED).to_list() == [{"text": "gone", "label": "post"}]


def test_rows_to_predict_need_no_answer() -> None:
    bare = Dataset.from_dict({"body": ["gone"]})
    with pytest.raises(HftuneError, match="no column for label"):
        read_more_rows(TASK, bare, NAMED)
    assert read_more_rows(TASK, bare, NAMED, answers=False).to_list() == [{"text": "gone"}]
    answered = Dataset.from_dict({"body": ["gone"], "team": [["no", "label"]]})
    assert read_more_rows(TASK, answered, NAMED, answers=False).to_list() == [{"text": "gone"}]
