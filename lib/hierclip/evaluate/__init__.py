"""Level-wise evaluation: the matrix, its figures and intervals, the audit, records and what is made of them."""

from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import level_matrix
from hierclip.evaluate.metrics import figures, holm, intervals, mcnemar, paired_difference, path_robust
from hierclip.evaluate.mistakes import mistakes
from hierclip.evaluate.outcomes import Outcomes, outcomes_path
from hierclip.evaluate.records import RECORDS, Record, RecordError, load_records, save_record
from hierclip.evaluate.run import evaluate
from hierclip.evaluate.transfer import transfer
from hierclip.evaluate.verify import verify
