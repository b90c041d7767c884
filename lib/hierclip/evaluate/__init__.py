"""Level-wise evaluation: the matrix, its figures and intervals, the audit, records and what is made of them."""

from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import Outcomes, level_matrix, outcomes_path
from hierclip.evaluate.metrics import figures, intervals, paired_difference, path_robust
from hierclip.evaluate.records import (
    RECORDS,
    Record,
    RecordError,
    git_revision,
    load_records,
    save_record,
    threat_model,
    versions,
)
from hierclip.evaluate.run import evaluate
from hierclip.evaluate.verify import verify
