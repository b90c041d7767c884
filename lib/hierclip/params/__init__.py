"""`params.yaml` as typed, frozen records."""

from hierclip.params.file import FILE, SPLITS, Params, ParamsError, find_root, load_params
from hierclip.params.methods import (
    AgftParams,
    FlatParams,
    HierParams,
    MethodParams,
    NoneParams,
    RecallParams,
    TgaZsrParams,
    TrainAttackParams,
    TrainedParams,
)
from hierclip.params.sections import (
    AblationParams,
    AttackParams,
    DataParams,
    FinetuneParams,
    MachineParams,
    MarginParams,
    ModelParams,
    OpenMojiParams,
    OptimParams,
    PhotoParams,
    PlotsParams,
    PretrainParams,
    StudyParams,
    SweepParams,
    TreesParams,
    ZeroShotParams,
)
from hierclip.params.values import Section, format_budget, parse_budget
