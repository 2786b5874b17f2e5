"""Takes environment variables along with a job, in a file of mode 0600, so that no value is in any command line, list or log.

Ray's own way, `env_vars`, shows the values in its list of jobs and in a log of every node. Here the values are in the job's
package alone. The driver reads them when it starts; each of Ray's workers does through its setup hook.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestration.errors import ConfigError

FILE = ".isentrope/variables.json"  # in the package, which is the working directory of every process of the job
WHERE = "ISENTROPE_VARIABLES"  # names the file to the processes of a job
HOOK = "orchestration.jobs.variables.load"  # what Ray calls in every worker before it works
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def chosen(names: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables of these names. Raises ConfigError, which quotes no value, where one is not set."""
    for name in names:
        if "=" in name:
            raise ConfigError(
                "--env takes the name of a variable and takes its value from this shell: on a command line every user of this "
                "machine could read the value"
            )
        if not NAME.fullmatch(name):
            raise ConfigError("--env takes the name of a variable: letters, digits and _")
        if name not in environ:
            raise ConfigError(
                f"--env names {name[:100]}, which is not set here: put the value into that variable first"
            )
    return {name: environ[name] for name in names}


def write(folder: Path, values: Mapping[str, str]) -> None:
    """Writes the variables into a package. Only the user can read the file, here and where Ray unpacks it."""
    file = folder / FILE
    file.parent.mkdir(exist_ok=True)
    file.touch(0o600)
    file.write_text(json.dumps(dict(values)), "utf-8")


def load() -> None:
    """Sets the variables that came along, in a process of a job; does nothing in any other."""
    where = os.environ.get(WHERE)
    if not where:
        return
    try:
        os.environ.update(json.loads(Path(where).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{where}, with the variables that this job was given, cannot be read: submit it again"
        ) from None
