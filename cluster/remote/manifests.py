"""Manifests by URL: by the rules that hold for pictures, whose fetcher reads them."""

from __future__ import annotations

from cluster.remote.buckets import BucketReader
from cluster.remote.connect import FetchLimits
from cluster.remote.fetcher import PictureFetcher
from cluster.remote.policy import FetchPolicy
from cluster.remote.urls import BUCKET_SCHEMES, is_remote, scheme_of, shown
from pipeline.problems import BadInputError
from pipeline.units import MIB

#: Bytes of a manifest that is fetched: as many as one that is sent may have.
MAX_FETCHED_BYTES = 64 * MIB
_SEND_IT = "Send the manifest itself as the request's body."


class RemoteManifests:
    """Reads manifests by the URLs that a policy lets it; safe to use from several threads."""

    def __init__(self, policy: FetchPolicy, *, fetcher: PictureFetcher | None = None) -> None:
        """`fetcher` reads by https and http; None: the guarded one, as for pictures."""
        limits = FetchLimits(most_bytes=MAX_FETCHED_BYTES)
        self._fetcher = fetcher or manifest_fetcher(policy, limits)
        self._buckets = BucketReader(policy, limits.most_bytes, begins=_anything)

    def read(self, url: str) -> bytes:
        """The bytes of the manifest at a URL. Raises `BadInputError` on the field `manifest_url`."""
        if not is_remote(url):
            what = f"{shown(url)[:200]!r} is no URL from which manifests are read"
            raise BadInputError("manifest_url", what, f"Give one that begins with https:// or s3://. {_SEND_IT}")
        reader = self._buckets.read if scheme_of(url) in BUCKET_SCHEMES else self._fetcher.fetch
        try:
            return reader(url)
        except BadInputError as error:
            # The words of pictures' rules: they name what is wrong with the URL, and where to go on with a picture.
            message = error.problem.message.replace("pictures are", "manifests are").replace("picture", "manifest")
            remedy = error.problem.remedy.replace("picture", "manifest")
            if "beside the manifest" in remedy or remedy.startswith("Save it"):
                remedy = _SEND_IT
            raise BadInputError("manifest_url", message, remedy) from error


def manifest_fetcher(policy: FetchPolicy, limits: FetchLimits | None = None) -> PictureFetcher:
    """The guarded fetcher for what need not begin as a picture does."""
    limits = limits or FetchLimits(most_bytes=MAX_FETCHED_BYTES)
    return PictureFetcher(policy, limits=limits, begins=_anything, accept="*/*")


def _anything(_head: bytes) -> None:
    """What is no manifest is refused by whoever reads it."""
