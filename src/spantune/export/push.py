"""Upload of an export to a hub, ModelScope or Hugging Face, with the hub's own client.

The clients find address and token themselves (MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN, HF_ENDPOINT and HF_TOKEN,
or a login). This module never reads, stores or logs a token. Errors of the clients become one sentence with a remedy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from spantune.core import ConfigError, ModelError, first_line, masked, nearest
from spantune.models import HUBS, hf_http_error

if TYPE_CHECKING:
    from modelscope_hub import HubApi

LOGIN = {
    "hf": "set HF_TOKEN to a token that may write, or run hf auth login",
    "modelscope": "set MODELSCOPE_API_TOKEN, or run modelscope login",
}
AGAIN = {
    "hf": "hf upload {repo} {folder}",
    "modelscope": "modelscope upload {repo} {folder}",
}


@dataclass(frozen=True)
class Place:
    """A model repository on a hub."""

    hub: Literal["modelscope", "hf"]
    repo: str

    def __str__(self) -> str:
        """Return the place as it is written on the command line."""
        return f"{self.hub}:{self.repo}"

    @property
    def address(self) -> str:
        """The address of the hub, to which files are uploaded."""
        return HUBS[self.hub].endpoints()[0]

    @property
    def url(self) -> str:
        """The URL of the repository's page."""
        return f"{self.address}/{self.repo}" if self.hub == "hf" else f"{self.address}/models/{self.repo}"


def parse_place(text: str) -> Place:
    """Parse `modelscope:OWNER/NAME` or `hf:OWNER/NAME`.

    Raises:
        ConfigError: `text` has another form, or the network is switched off.
    """
    hub, _, repo = text.partition(":")
    if hub not in LOGIN or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo):
        hint = "" if hub in LOGIN else f"; {nearest(hub, LOGIN)}"
        raise ConfigError(f"--push {text}: expected modelscope:OWNER/NAME or hf:OWNER/NAME{hint}")
    place = Place(cast(Literal["modelscope", "hf"], hub), repo)
    if HUBS[hub].offline():
        raise ConfigError(f"--push {text}: the network is switched off (SPANTUNE_OFFLINE or HF_HUB_OFFLINE); unset it")
    return place


def require_login(place: Place) -> None:
    """Check that the hub accepts the user's token, before anything is computed.

    Raises:
        ModelError: the hub cannot be reached, or does not accept the token.
    """
    with _errors(place):
        if place.hub == "hf":
            from huggingface_hub import HfApi

            HfApi(endpoint=place.address).whoami()
        else:
            _modelscope_api(place).whoami()


def push(folder: Path, place: Place, *, public: bool = False, license: str | None = None) -> str:
    """Upload an exported folder, and return the URL of its page. A missing repository is made, private by default.

    Args:
        folder: the exported folder.
        place: the repository.
        public: whether a new repository is public; an existing one keeps its visibility.
        license: the licence that a new repository on ModelScope states; without one it states `Other`.

    Raises:
        ModelError: the hub cannot be reached, or refuses the token or the files; `folder` is unchanged.
    """
    again = AGAIN[place.hub].format(repo=place.repo, folder=folder)
    with _errors(place, f"; the export is whole in {folder}: upload it later with {again}"), _quiet():
        if place.hub == "hf":
            _to_hugging_face(folder, place, public)
        else:
            _to_modelscope(folder, place, public, license or "Other")
    return place.url


def _to_hugging_face(folder: Path, place: Place, public: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=place.address)
    api.create_repo(place.repo, private=not public, exist_ok=True)
    api.upload_folder(repo_id=place.repo, folder_path=str(folder), commit_message="Upload an export of spantune")


def _to_modelscope(folder: Path, place: Place, public: bool, license: str) -> None:
    from modelscope_hub.errors import AlreadyExistsError

    api = _modelscope_api(place)
    with contextlib.suppress(AlreadyExistsError):
        api.create_repo(place.repo, "model", visibility="public" if public else "private", license=license)
    api.upload_folder(
        place.repo,
        "model",
        str(folder),
        commit_message="Upload an export of spantune",
        use_cache=False,  # it would leave a file in the folder
        disable_tqdm=not sys.stderr.isatty(),
    )


def _modelscope_api(place: Place) -> HubApi:
    """Return a client of ModelScope with the present token; the module's own client keeps the first token it used."""
    from modelscope_hub import HubApi, HubConfig

    return HubApi(HubConfig(endpoint=place.address))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the clients' output away from stdout and their progress bars out of logs, and log only their warnings."""
    logger = logging.getLogger("modelscope_hub")
    level = logger.level
    logger.setLevel(logging.WARNING)
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _errors(place: Place, then: str = "") -> Iterator[None]:
    """Raise what a client raises as a ModelError of one sentence, which ends with `then`."""
    try:
        with _hugging_face(place) if place.hub == "hf" else _modelscope(place):
            yield
    except _Refused as refused:
        raise ModelError(masked(f"--push {place}: {refused}{then}")) from refused.__cause__


class _Refused(Exception):
    """A hub refused a request; the message says why."""


@contextlib.contextmanager
def _hugging_face(place: Place) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise _Refused(f"there is no token for {place.address}; {LOGIN['hf']}") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise _Refused(_refusal(place, code, first_line(error))) from error
    except (hf_http_error(), OSError, ValueError) as error:
        raise _Refused(_unreachable(place, error)) from error
    except (KeyError, TypeError) as error:
        raise _Refused(_no_hub(place, error)) from error


@contextlib.contextmanager
def _modelscope(place: Place) -> Iterator[None]:
    from modelscope_hub.errors import AuthenticationError, HubError, NetworkError, PermissionDeniedError

    try:
        yield
    except AuthenticationError as error:
        raise _Refused(_refusal(place, 401, first_line(error))) from error
    except PermissionDeniedError as error:
        raise _Refused(_refusal(place, 403, first_line(error))) from error
    except NetworkError as error:
        raise _Refused(_unreachable(place, error)) from error
    except HubError as error:
        raise _Refused(f"{place.address} refused it ({first_line(error)}); try again") from error
    except (OSError, ValueError) as error:
        raise _Refused(_unreachable(place, error)) from error
    except (KeyError, TypeError) as error:
        raise _Refused(_no_hub(place, error)) from error


def _no_hub(place: Place, error: Exception) -> str:
    return f"{place.address} answers as no hub does ({type(error).__name__}: {first_line(error)}); check the address"


def _refusal(place: Place, code: int, said: str) -> str:
    if code == 401:
        return f"{place.address} does not accept the token; {LOGIN[place.hub]}"
    if code == 403:
        return f"{place.address} does not let this token write to {place.repo}; {LOGIN[place.hub]}"
    return f"{place.address} refused it ({said}); try again"


def _unreachable(place: Place, error: Exception) -> str:
    return f"{place.address} could not be reached ({first_line(error)}); check the connection, and try again"
