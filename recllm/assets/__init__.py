"""Named public models and data sets, fetched once into a cache and checked by sha256.

`fetch(name)` answers with a folder. See `cache` for how an entry comes to be, `registry` for what exists.
"""

from recllm.assets.cache import cache_root, fetch, source_of
from recllm.assets.registry import ASSETS, Asset, AssetError, Source

__all__ = ["ASSETS", "Asset", "AssetError", "Source", "cache_root", "fetch", "source_of"]
