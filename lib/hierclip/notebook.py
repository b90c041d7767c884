"""How papermill runs a notebook of the pipeline: `--engine clean`."""

import json
import resource
from pathlib import Path
from time import perf_counter

from nbstripout import strip_output
from papermill.engines import NBClientEngine

DIFFERS = [
    "metadata.papermill",
    "metadata.language_info",
    "cell.metadata.papermill",
    "cell.metadata.execution",
]
EXECUTED, TIMES = "executed", "times"


class Clean(NBClientEngine):
    """The papermill engine `clean`: the executed copy holds only what two runs have in common, no
    times or versions.

    The seconds that a notebook took go to a file of TIMES beside the folder of executed notebooks;
    no stage depends on it. A copy in which a cell failed is left as it is, for papermill to report.
    """

    @classmethod
    def execute_notebook(cls, nb, kernel_name, output_path=None, **kwargs):
        start, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        nb = super().execute_notebook(nb, kernel_name, output_path=output_path, **kwargs)
        if output_path and Path(output_path).parent.name == EXECUTED:
            keep_seconds(Path(output_path), perf_counter() - start, before)
        if any(cell.metadata.get("papermill", {}).get("exception") for cell in nb.cells):
            return nb
        return strip_output(
            nb, keep_output=True, keep_count=True, keep_id=False, extra_keys=DIFFERS
        )


def keep_seconds(executed: Path, wall: float, before: resource.struct_rusage) -> None:
    """Write the wall, user and system seconds of a notebook whose processes have ended since
    `before`.
    """
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    file = executed.parents[1] / TIMES / f"{executed.stem}.json"
    file.parent.mkdir(exist_ok=True)
    user, system = spent.ru_utime - before.ru_utime, spent.ru_stime - before.ru_stime
    file.write_text(
        json.dumps({"wall": round(wall, 2), "user": round(user, 2), "system": round(system, 2)})
    )
