"""How papermill runs a notebook of the pipeline: `--engine clean`."""

from nbstripout import strip_output
from papermill.engines import NBClientEngine

DIFFERS = ["metadata.papermill", "metadata.language_info", "cell.metadata.papermill", "cell.metadata.execution"]


class Clean(NBClientEngine):
    """Runs a notebook and keeps of the executed copy what two runs have in common: no times, no versions.

    A copy in which a cell failed is left as it is, for papermill to report.
    """

    @classmethod
    def execute_notebook(cls, nb, *args, **kwargs):
        nb = super().execute_notebook(nb, *args, **kwargs)
        if any(cell.metadata.get("papermill", {}).get("exception") for cell in nb.cells):
            return nb
        return strip_output(nb, keep_output=True, keep_count=True, keep_id=False, extra_keys=DIFFERS)
