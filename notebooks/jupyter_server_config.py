"""`make lab`: notebooks are saved without their outputs, so that looking at one does not change the
pipeline.
"""

import nbformat
from nbstripout import strip_output

c = get_config()  # noqa: F821 - Jupyter puts it there


def strip(model, **_):
    if model["type"] == "notebook" and model["content"]["nbformat"] == 4:
        notebook = nbformat.from_dict(model["content"])
        model["content"] = strip_output(notebook, keep_output=False, keep_count=False, keep_id=True,
                                        extra_keys=["metadata.language_info"])  # fmt: skip


c.FileContentsManager.pre_save_hook = strip
