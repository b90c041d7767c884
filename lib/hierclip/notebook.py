"""How papermill runs a notebook of the pipeline: `--engine clean`."""

import json
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from time import perf_counter

from nbstripout import strip_output
from papermill.engines import NBClientEngine


class Clean(NBClientEngine):
    """Run a notebook, and keep of the executed copy what two runs share: no times, no versions.

    A copy in which a cell failed is left as it is, for papermill to report. What a copy in
    data/executed took goes to data/times, on which no stage depends: wall, user, system seconds.
    """

    @classmethod
    def execute_notebook(cls, nb, kernel_name, output_path=None, **kwargs):
        start, before = perf_counter(), getrusage(RUSAGE_CHILDREN)
        nb = super().execute_notebook(nb, kernel_name, output_path=output_path, **kwargs)
        wall, after = perf_counter() - start, getrusage(RUSAGE_CHILDREN)
        executed = Path(output_path or "")
        if executed.parent.name == "executed":
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            seconds = {"wall": round(wall, 2), "user": round(user, 2), "system": round(system, 2)}
            file = executed.parents[1] / "times" / f"{executed.stem}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(seconds), encoding="utf8")
        if any(cell.metadata.get("papermill", {}).get("exception") for cell in nb.cells):
            return nb
        differs = ["metadata.papermill", "metadata.language_info", "cell.metadata.papermill"]
        return strip_output(
            nb, keep_output=True, keep_count=True, keep_id=False,
            extra_keys=[*differs, "cell.metadata.execution"],
        )  # fmt: skip
