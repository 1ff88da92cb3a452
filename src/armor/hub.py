"""Why the Hugging Face Hub did not give a model or a data set, and what helps: one line."""

from __future__ import annotations

from collections.abc import Iterator

from armor.errors import reason

_LOGIN = "log in with `hf auth login` (or set HF_TOKEN)"
#: The libraries that huggingface_hub speaks HTTP with; their errors are not all OSErrors.
_NETWORK = ("httpx", "httpcore", "httpx2", "httpcore2", "requests", "urllib3", "socket", "ssl")


def hub_failure(name: str, error: BaseException, kind: str = "model") -> str:
    """What stopped a download of `name`, in one line with the remedy; the cause is always in it.

    Args:
        name: OWNER/NAME. error: what huggingface_hub, or a library that uses it, raised.
        kind: "model" or "dataset".
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    chain = list(_causes(error))
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"{name} is a gated {kind}: accept its licence at {page}, then {_LOGIN}"
                f" ({_says(cause)})"
            )
        if isinstance(cause, errors.DisabledRepoError):
            return f"{name}: the Hub has disabled this {kind}, see {page} ({_says(cause)})"
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{name}: the Hub has no such revision, see {page} ({_says(cause)})"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{name}: the Hub shows no such {kind}: check the name; if it is private, {_LOGIN}"
                f" as a user who may read it ({_says(cause)})"
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"{name} is not (wholly) in the local cache, and HF_HUB_OFFLINE forbids to download"
                " it: unset that variable, or give a folder"
            )
        if status in (401, 403):
            return (
                f"{name}: the Hub refused access ({status}): {_LOGIN} with a token that may read"
                f" it, and accept its licence at {page} if it has one ({_says(cause)})"
            )
        if status == 429:
            return f"{name}: too many requests to the Hub: wait, or {_LOGIN} ({_says(cause)})"
        if status is not None:
            return f"{name}: the Hub answered {status}: try again later ({_says(cause)})"
    for cause in chain:
        network = type(cause).__module__.partition(".")[0] in _NETWORK
        if network or isinstance(cause, (ConnectionError, TimeoutError)):
            return (
                f"{name} is not in the local cache, and {constants.ENDPOINT} cannot be reached:"
                f" check the network and the proxy, or give a folder ({_says(cause)})"
            )
    return f"{name}: not downloaded from the Hub ({_says(error)})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what led to it, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _says(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"
