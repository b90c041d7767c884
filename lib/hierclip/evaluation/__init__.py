"""Level-wise evaluation: the matrix, its metrics and intervals, the checks, records."""

from hierclip.evaluation.masking import CHECKS, gradient_masking_checks
from hierclip.evaluation.matrix import LevelMatrix, Outcomes, outcomes_path
from hierclip.evaluation.metrics import intervals, level_metrics, mistakes, path_robust
from hierclip.evaluation.records import (
    RECORDS,
    Evaluation,
    Record,
    RecordError,
    load_records,
    save_record,
    verify,
)
