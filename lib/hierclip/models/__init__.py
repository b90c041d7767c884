"""An open_clip model with level-wise predictions: made, loaded, saved, read."""

from hierclip.models.backbone import (
    Backbone as Backbone,
    ImageEncoder as ImageEncoder,
    Towers as Towers,
    encode_texts as encode_texts,
    save as save,
    text_features as text_features,
)
from hierclip.models.checkpoint import (
    ModelError as ModelError,
)
from hierclip.models.classifier import (
    HEAD as HEAD,
    READINGS as READINGS,
    Classifier as Classifier,
    Model as Model,
    load_model as load_model,
    save_model as save_model,
)
from hierclip.models.heads import (
    HEADS as HEADS,
    CosineHead as CosineHead,
    EuclideanHead as EuclideanHead,
    Head as Head,
    PoincareHead as PoincareHead,
    at_least_float32 as at_least_float32,
)
from hierclip.models.opening import (
    AS_PUBLISHED as AS_PUBLISHED,
    Overrides as Overrides,
    create as create,
    load as load,
    open_backbone as open_backbone,
)
from hierclip.models.wrapped import (
    Wrapped as Wrapped,
)
