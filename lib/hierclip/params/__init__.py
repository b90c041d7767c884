"""`params.yaml` as typed, frozen records."""

from hierclip.params.file import FILE, SPLITS, Params, ParamsError, find_root, load_params
from hierclip.params.methods import (
    AgftParams,
    HierParams,
    MethodParams,
    NoneParams,
    TgaZsrParams,
    TrainedParams,
)
from hierclip.params.sections import (
    AblationParams,
    AttackParams,
    DataParams,
    FinetuneParams,
    MachineParams,
    ModelParams,
    OpenMojiParams,
    OptimParams,
    PhotoParams,
    PlotsParams,
    PretrainParams,
    StudyParams,
    TreesParams,
)
from hierclip.params.values import format_budget, parse_budget
