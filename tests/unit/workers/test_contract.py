"""What a worker says of its data, in words."""

from __future__ import annotations

from workers.contract import DataSummary


def test_a_summary_names_what_was_lost_and_only_that() -> None:
    whole = DataSummary(
        train_rows=600, train_skipped=0, train_truncated=0, eval_rows=120, eval_skipped=0, eval_truncated=0
    )
    assert whole.in_words() == "600 train rows, 120 eval rows"
    lossy = DataSummary(
        train_rows=2000, train_skipped=220, train_truncated=3, eval_rows=9, eval_skipped=0, eval_truncated=1
    )
    assert lossy.in_words() == (
        "2,000 train rows (220 skipped for having no supervised token; 3 cut to max_length), "
        "9 eval rows (1 cut to max_length)"
    )
