"""An open_clip model with level-wise predictions: made, loaded, saved, read."""

from hierclip.models.backbone import (
    Backbone,
    ImageEncoder,
    ModelError,
    Towers,
    create,
    encode_texts,
    load,
    open_backbone,
    save,
    text_features,
)
from hierclip.models.classifier import (
    HEAD,
    READINGS,
    Classifier,
    Model,
    load_model,
    read,
    save_model,
)
from hierclip.models.heads import (
    HEADS,
    CosineHead,
    EuclideanHead,
    Head,
    LearnedHead,
    PoincareHead,
    at_least_float32,
)
