"""An open_clip model with level-wise predictions: made, loaded, saved, read."""

from hierclip.models.backbone import (
    Backbone,
    ImageEncoder,
    Towers,
    encode_texts,
    save,
    text_features,
)
from hierclip.models.checkpoint import ModelError
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
    PoincareHead,
    at_least_float32,
)
from hierclip.models.opening import AS_PUBLISHED, Overrides, create, load, open_backbone
from hierclip.models.wrapped import Wrapped
