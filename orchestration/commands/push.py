"""Pushes an exported folder to a model hub, through huggingface_hub: `isentrope export RUN OUT --push OWNER/NAME`.

The token is the environment's HF_TOKEN and nothing else: a login that a machine keeps is not used by accident. A repository that is
made is private unless it is asked for otherwise, and one that is there and public is not pushed to by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.quoting import quoted
from orchestration.errors import ConfigError, IsentropeError
from orchestration.text import one_line

TOKEN = "HF_TOKEN"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Hub:
    """Holds the connection to the hub and the repository. ConfigError where a push cannot work, before anything is written."""

    def __init__(self, repo: str, public: bool = False) -> None:
        self.repo, self.public = repo, public
        _check_name(repo)
        for name in OFFLINE:
            if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
                raise ConfigError(
                    f"--push needs the hub and {name} is {os.environ[name]}, which keeps from it: unset {name}"
                )
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise ConfigError(
                f"--push needs a token of the hub that may write, in the variable {TOKEN}, which is not set"
            )
        from huggingface_hub import HfApi  # here: it takes long to import

        self._api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
        self._check_visibility()

    def push(self, folder: Path, message: str, say: Callable[[str], None]) -> None:
        """Sends a folder as one commit. IsentropeError where the hub does not take it; the folder stays."""
        try:
            self._api.create_repo(self.repo, private=not self.public, exist_ok=True)
            commit = self._api.upload_folder(repo_id=self.repo, folder_path=folder, commit_message=message)
        except Exception as error:
            raise IsentropeError(
                f"{folder} is written and the hub did not take it as {self.repo} ({one_line(error)}): once that is right, "
                f"`hf upload {self.repo} {folder}` pushes it"
            ) from error
        say(f"pushed: {commit.commit_url}")

    def _check_visibility(self) -> None:
        """Refuses to add to a public repository unless that is asked for. Asks the hub, and so also finds a wrong token early."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = self._api.repo_info(self.repo)
        except RepositoryNotFoundError:
            return  # it will be made
        except Exception as error:
            raise ConfigError(f"the hub does not answer for {self.repo} with this token: {one_line(error)}") from error
        if not found.private and not self.public:
            raise ConfigError(
                f"{self.repo} is there and everybody can read it: give --public to push to it, or another name"
            )


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        right = repo.count("/") == 1
    except HFValidationError:
        right = False
    if not right:
        raise ConfigError(
            f"--push {quoted(repo)}: a repository is OWNER/NAME, of letters, digits, '-', '_' and '.', 96 of them at most"
        )
