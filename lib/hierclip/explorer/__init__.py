"""What notebook 90 shows of trees, images and attacks: a model's view of an image, and the disk."""

from hierclip.explorer.disk import Disk, marks, png, scene
from hierclip.explorer.view import (
    ImageState,
    ModelView,
    image_state,
    open_model,
    open_task,
)
