"""Level-wise evaluation: the level matrix, its metrics, the gradient-masking checks, and
records.
"""

from hierclip.evaluate.masking import gradient_masking_checks
from hierclip.evaluate.matrix import LevelMatrix, Outcomes, level_matrix
from hierclip.evaluate.metrics import (
    figures,
    holm,
    intervals,
    mcnemar,
    mistakes,
    paired_difference,
    path_robust,
)
from hierclip.evaluate.records import (
    RECORDS,
    Record,
    RecordError,
    load_records,
    outcomes_path,
    save_record,
    verify,
)
from hierclip.evaluate.run import Evaluation, evaluate
