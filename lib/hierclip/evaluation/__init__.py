"""Level-wise evaluation: the matrix, its metrics and intervals, the checks, records."""

from hierclip.evaluation.masking import (
    CHECKS as CHECKS,
    gradient_masking_checks as gradient_masking_checks,
)
from hierclip.evaluation.matrix import (
    LevelMatrix as LevelMatrix,
    Outcomes as Outcomes,
    outcomes_path as outcomes_path,
)
from hierclip.evaluation.metrics import (
    intervals as intervals,
    level_metrics as level_metrics,
    mistakes as mistakes,
    path_robust as path_robust,
)
from hierclip.evaluation.records import (
    RECORDS as RECORDS,
    Evaluation as Evaluation,
    Record as Record,
    RecordError as RecordError,
    load_records as load_records,
    save_record as save_record,
    verify as verify,
)
