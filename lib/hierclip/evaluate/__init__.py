"""Level-wise evaluation: the matrix, its metrics and intervals, the checks, records."""

from hierclip.evaluate.masking import CHECKS, gradient_masking_checks
from hierclip.evaluate.matrix import LevelMatrix, Outcomes, outcomes_path
from hierclip.evaluate.metrics import (
    holm,
    intervals,
    level_metrics,
    mcnemar,
    mistakes,
    paired_difference,
    path_robust,
)
from hierclip.evaluate.records import (
    RECORDS,
    Evaluation,
    Record,
    RecordError,
    load_records,
    save_record,
    verify,
)
