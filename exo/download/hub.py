"""What the Hugging Face hub says of a repository, through `huggingface_hub` and its settings: HF_ENDPOINT, HF_TOKEN and
the token file, HF_HUB_OFFLINE, the cache. Bytes are fetched by `hub_fetch.py`, since the library fetches no ranges.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

from exo.certificates import trusting_context
from exo.config import certificate_settings
from exo.download.disk_threads import in_thread
from exo.download.manifest import (
    SUFFIXES,
    Manifest,
    RepoFile,
    check_revision,
    checked_file,
    is_hostile_name,
    is_plain_name,
    quantizations_in,
    wanted_files,
)
from exo.download.retry import Transient, retry_after_s
from exo.errors import DownloadError, ModelFilesError, NetworkCauseError
from exo.log import log
from exo.models import HubSource
from exo.network_causes import answered_by, lasting_cause, passing_cause, proxy_cause
from exo.proxies import proxy_for, shown

_TIMEOUT_S = 15.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubUnreachableError(DownloadError):
  """There is no way to the hub; perhaps a neighbour has what is wanted."""
  kind = "hub_unreachable"


class NotThereError(DownloadError):
  """The hub has no such repository or file, or not for this user: another form of the model may be there."""


async def hub_manifest(model_id: str, source: HubSource) -> Manifest:
  """The files of a repository that make the model. One attempt.

  Raises `DownloadError` with what to do, `HubUnreachableError`, `Transient` for what may pass, `ModelFilesError` for a
  repository that names files outside itself.
  """
  check_revision(source.revision)
  return await in_thread(_manifest, model_id, source)


def _manifest(model_id: str, source: HubSource) -> Manifest:
  from huggingface_hub import HfApi, constants
  if constants.HF_HUB_OFFLINE:
    raise HubUnreachableError(
        f"{model_id} is not on this machine, nor in its ring, and HF_HUB_OFFLINE is set: unset it, or fetch the model first"
    )
  try:
    _use_settings(constants.ENDPOINT)
    info = HfApi(endpoint=constants.ENDPOINT, token=_token(source)
                 ).model_info(source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S)
  except Exception as error:  # the library lets its HTTP client's errors through too; each is named to the user
    raise explained(source, error) from error
  if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
    raise ModelFilesError(f"the hub gave no commit for {source.repo}")
  files = []
  for sibling in info.siblings or []:
    file = _file(source.repo, sibling.rfilename, sibling.size, sibling.lfs, sibling.blob_id)
    if file is not None:
      files.append(file)
  try:
    wanted = tuple(wanted_files(source.repo, files, source.variant))
  except DownloadError as error:
    raise NotThereError(error.message) from error
  return Manifest(model_id, source.repo, info.sha, wanted, quantizations_in(files))


async def has_commit(source: HubSource, commit: str) -> bool:
  """Whether a commit lies on the branch (or tag) that is meant. The hub names other commits too, such as those of changes
  that anybody proposes and nobody has accepted. One attempt; raises as `hub_manifest` does."""
  return await in_thread(_has_commit, source, commit)


def _has_commit(source: HubSource, commit: str) -> bool:
  from huggingface_hub import HfApi, constants
  try:
    _use_settings(constants.ENDPOINT)
    history = HfApi(endpoint=constants.ENDPOINT,
                    token=_token(source)).list_repo_commits(source.repo, revision=source.revision)
  except Exception as error:  # as above
    raise explained(source, error) from error
  return any(item.commit_id == commit for item in history)


def is_offline() -> bool:
  """Whether the user forbids asking the hub."""
  from huggingface_hub import constants
  return bool(constants.HF_HUB_OFFLINE)


def _file(repo: str, name: object, size: object, lfs: object, blob_id: object) -> RepoFile | None:
  """None for a file that exo would never fetch. Raises `ModelFilesError` for one that no honest repository has."""
  if is_hostile_name(name):
    raise ModelFilesError(f"{repo} names a file {str(name)[:80]!r}, which lies outside it: exo does not touch it")
  if not is_plain_name(name) or not str(name).endswith(SUFFIXES):
    return None
  sha256 = getattr(lfs, "sha256", None)
  return checked_file(name, size, sha256, None if sha256 else blob_id)


def _token(source: HubSource) -> bool | None:
  """What the library takes: None for the user's token, where there is one, False for none."""
  return None if source.with_token else False


def explained(source: HubSource, error: Exception) -> DownloadError | Transient:
  """An error of the library's in words that say what to do, or as one that may pass."""
  from huggingface_hub import constants, errors
  repo, status = source.repo, getattr(getattr(error, "response", None), "status_code", None)
  match error:
    case errors.GatedRepoError() | errors.RepositoryNotFoundError() if not source.with_token:
      return unasked(repo)
    case errors.GatedRepoError():
      return refused(repo, constants.ENDPOINT, gated=True)
    case errors.RevisionNotFoundError():
      return DownloadError(f"{repo} has no revision {source.revision!r}")
    case errors.DisabledRepoError():
      return NotThereError(f"the hub has closed {repo}: choose another repository")
    case errors.RepositoryNotFoundError():
      return NotThereError(f"the hub has no repository {repo}, or it is private: check the name, or set HF_TOKEN")
    case errors.OfflineModeIsEnabled():
      return HubUnreachableError(f"{repo} is not on this machine, and HF_HUB_OFFLINE is set")
  if status == 404:
    return NotThereError(f"the hub has no repository {repo}: check the name and the revision")
  proxy = proxy_for(constants.ENDPOINT) if status is not None else None
  if status == 407 and proxy is not None:
    return HubUnreachableError(proxy_cause(proxy, status))
  if status in (401, 403):
    return unasked(repo) if not source.with_token else refused(repo, constants.ENDPOINT, gated=False, proxy=proxy)
  if status == 429 or (status is not None and status >= 500):
    headers = getattr(getattr(error, "response", None), "headers", {})
    return Transient(f"{answered_by('the hub', proxy)} {status}", retry_after_s(headers.get("Retry-After")))
  if status is not None:
    return DownloadError(f"the hub answers {status} for {repo}: check the name and the revision")
  if isinstance(error, NetworkCauseError) or _is_connection_error(error):
    return unreachable(error, constants.ENDPOINT)
  return DownloadError(f"{repo} could not be looked up: {type(error).__name__}: {error}")


def unreachable(error: BaseException, url: str) -> HubUnreachableError | Transient:
  """Why there is no way there: what does not pass by itself is not tried again, and is said at every log level."""
  proxy = None if isinstance(error, NetworkCauseError) else proxy_for(url)
  if lasting := lasting_cause(error, url, proxy):
    log(0, "%s", lasting)
    return HubUnreachableError(lasting)
  return Transient(passing_cause(error, url, proxy), connection=True)


_settings: tuple[object, ...] = ()
_settings_lock = threading.Lock()


def _use_settings(endpoint: str) -> None:
  """Let the library ask through the same proxy and trust the same certificates as everything else here.

  Raises `NetworkCauseError` for settings that nothing can be asked with. May read files.
  """
  global _settings
  from huggingface_hub import set_client_factory
  from huggingface_hub.utils import get_session
  proxy, certificates = proxy_for(endpoint), certificate_settings()
  with _settings_lock:
    wanted = (proxy, *certificates.items())
    if wanted == _settings:
      return
    context, plain = trusting_context(certificates), get_session()
    kind, hooks = type(plain), plain.event_hooks
    set_client_factory(  # some of its calls name no time to wait
        lambda:
        kind(event_hooks=hooks, follow_redirects=True, timeout=_TIMEOUT_S, verify=context, proxy=proxy, trust_env=False)
    )
    _settings = wanted


def _is_connection_error(error: BaseException) -> bool:
  """The library speaks through httpx; nothing else here does."""
  names = {cls.__name__ for cls in type(error).__mro__}
  return bool(names & {"TransportError", "TimeoutException", "ConnectionError", "TimeoutError"})


def unasked(repo: str) -> DownloadError:
  """For a repository that only other nodes have named."""
  return DownloadError(
      f"{repo} is none that anybody may read, and this node shows its token for no repository that only another node names: "
      f"fetch it on this machine too (`exo pull {repo}`), or start all nodes with a cluster key (`exo key new`)"
  )


def refused(repo: str, endpoint: str, *, gated: bool, proxy: str | None = None) -> DownloadError:
  if gated:
    return NotThereError(
        f"{repo} asks for consent: accept its terms at {endpoint}/{repo}, then set HF_TOKEN to a token of that account"
    )
  return DownloadError(
      f"{'the hub' if proxy is None else f'the hub, or the proxy {shown(proxy)} before it,'} refuses access to {repo}: set HF_TOKEN to a token that may read it, and accept its terms at "
      f"{endpoint}/{repo} if it has any"
  )


# the library's own cache


def cached_snapshot(source: HubSource) -> Path | None:
  """The folder of the library's cache that holds this repository whole, where there is one. Asks no network."""
  from huggingface_hub import constants
  home = Path(constants.HF_HUB_CACHE) / f"models--{source.folder_of_repo}"
  try:
    commit = source.revision
    if not _COMMIT.fullmatch(commit):
      commit = (home / "refs" / source.revision).read_text().strip()
    folder = home / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
      return None
    return folder if _is_whole(folder) else None
  except OSError:
    return None


def _is_whole(folder: Path) -> bool:
  from exo.inference.weights.safetensors_checkpoint import read_json
  if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
    return False
  try:
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
  except ModelFilesError:
    return False
  names = set(index.values()) if isinstance(index, dict) else {"model.safetensors"}
  return all(is_plain_name(name) and (folder / name).is_file() for name in names)


def cached_blob(source: HubSource, file: RepoFile) -> Path | None:
  """A file of the library's cache with this very content."""
  from huggingface_hub import constants
  digest = file.sha256 or file.git_oid
  if digest is None:
    return None
  blob = Path(constants.HF_HUB_CACHE) / f"models--{source.folder_of_repo}" / "blobs" / digest
  try:
    return blob if blob.is_file() and blob.stat().st_size == file.size else None
  except OSError:
    return None
