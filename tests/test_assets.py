"""Assets: what a source delivers is checked, a half-made entry is never used, and every failure is told."""

import errno
import hashlib
import http.server
import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from recllm import assets
from recllm.assets import Asset, AssetError, Source, build, cache, fetch, registry, source_of, sources


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


BODY = zipped({"toy/a.txt": b"alpha", "toy/b/c.txt": b"gamma", "other.txt": b"no"})


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.send_error(404)  # somebody answers, which is all the probe asks

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.startswith("/broken"):
            self.send_error(500)
            return
        body = self.server.bodies[self.path.removeprefix("/short")]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/short") else body)


@pytest.fixture
def server():
    running = _Server()
    running.bodies["/toy.zip"] = BODY
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECLLM_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    sources.unreachable.cache_clear()
    yield tmp_path / "cache"
    sources.unreachable.cache_clear()


@pytest.fixture
def known(monkeypatch):
    """Register a toy asset with the sources given."""

    def register(*toy_sources: Source, files: dict | None = None) -> Asset:
        asset = Asset("toy", "data set", "a toy", "CC0-1.0", "none", tuple(toy_sources), files or {"a.txt": None})
        monkeypatch.setitem(registry.ASSETS, "toy", asset)
        return asset

    return register


unpack_toy = partial(build.unpack, prefix="toy/")


def url_source(server, path="/toy.zip", digest=None, builder=unpack_toy, need=0):
    return Source("url", server.address + path, {"toy.zip": digest or sha(BODY)}, builder, need)


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "assets" / "toy").iterdir() if path.name != ".lock"]


def test_a_url_source_becomes_a_folder_once(server, known, own_cache):
    known(url_source(server))
    folder = fetch("toy")
    assert (folder / "a.txt").read_bytes() == b"alpha" and (folder / "b/c.txt").read_bytes() == b"gamma"
    assert not (folder / "other.txt").exists()
    assert folder.is_relative_to(own_cache)
    assert fetch("toy") == fetch("toy", offline=True) == folder
    assert server.asked == ["/toy.zip"]
    record = source_of("toy")
    assert record["licence"] == "CC0-1.0" and record["source"]["sha256"] == {"toy.zip": sha(BODY)}
    assert record["source"]["kind"] == "url" and record["source"]["location"].endswith("/toy.zip")
    assert record["files"]["b/c.txt"] == {"bytes": 5, "sha256": sha(b"gamma")}
    assert leftovers(own_cache) == ["url"]


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, known, own_cache):
    known(url_source(server, digest="0" * 64))
    with pytest.raises(AssetError, match=f"{sha(BODY)}, expected {'0' * 64}"):
        fetch("toy")
    assert leftovers(own_cache) == []
    with pytest.raises(AssetError, match="not in the cache"):
        source_of("toy")


def test_what_was_built_is_checked_too(server, known, own_cache):
    known(url_source(server), files={"a.txt": sha(b"another alpha")})
    with pytest.raises(AssetError, match=r"sha256 of the built a\.txt"):
        fetch("toy")
    known(url_source(server), files={"missing.txt": None})
    with pytest.raises(AssetError, match=r"missing\.txt was not built"):
        fetch("toy")
    assert leftovers(own_cache) == []


def test_every_failed_source_is_listed(server, known, monkeypatch):
    gone = Source("hub", "some/repo@main", {"x": "0" * 64}, build.move_all, 0)
    known(url_source(server, "/short/toy.zip"), url_source(server, "/broken"), gone)
    server.bodies["/toy.zip"] = BODY * 50
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(AssetError) as raised:
        fetch("toy")
    text = str(raised.value)
    assert "broke off after" in text and "answered 500" in text and "is out of reach" in text
    assert text.index("broke off") < text.index("500") < text.index("some/repo@main")


def test_the_next_source_is_tried(server, known, monkeypatch):
    known(url_source(server, "/broken"), Source("hub", "o/r@main", {"toy.zip": sha(BODY)}, unpack_toy, 0))
    server.bodies["/o/r/resolve/main/toy.zip"] = BODY
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    assert (fetch("toy") / "a.txt").read_bytes() == b"alpha"
    assert source_of("toy")["source"]["kind"] == "hub"


def test_hub_files_keep_their_folders_and_offline_is_respected(server, known, monkeypatch):
    files = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
    for name, data in files.items():
        server.bodies[f"/o/r/resolve/abc/{name}"] = data
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    known(
        Source("hub", "o/r@abc", {name: sha(data) for name, data in files.items()}, build.move_all, 0),
        files=dict.fromkeys(files),
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AssetError, match="HF_HUB_OFFLINE is set"):
        fetch("toy")
    assert server.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert (fetch("toy") / "1_Pooling/config.json").read_bytes() == b"[]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_silent_server_costs_one_short_probe(monkeypatch):
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        assert sources.unreachable(address)
        assert time.monotonic() - started < 1.0
        started = time.monotonic()
        assert sources.unreachable(address)
        assert time.monotonic() - started < 0.05


def make_wheel(folder: Path, members: dict[str, bytes]) -> tuple[str, str]:
    info = "toy_wheel-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\nRequires-Dist: no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    data = zipped({**members, **metadata})
    folder.mkdir(exist_ok=True)
    (folder / "toy_wheel-1.0-py3-none-any.whl").write_bytes(data)
    return "toy_wheel-1.0-py3-none-any.whl", sha(data)


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """pip sees the wheels of one folder and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def test_a_wheel_is_unpacked_without_its_dependencies(local_index, known):
    name, digest = make_wheel(local_index, {"toy/a.txt": b"alpha"})
    known(Source("pypi", "toy-wheel==1.0", {name: digest}, unpack_toy, 0))
    assert (fetch("toy") / "a.txt").read_bytes() == b"alpha"


def test_a_missing_wheel_says_what_pip_said(local_index, known):
    known(Source("pypi", "toy-wheel==2.0", {"x.whl": "0" * 64}, unpack_toy, 0))
    with pytest.raises(AssetError, match=r"No matching distribution found for toy-wheel==2.0"):
        fetch("toy")


@pytest.mark.parametrize("name", ["../out.txt", "toy/../../out.txt", "/out.txt", "toy\\..\\out.txt", "C:/out.txt"])
def test_a_zip_that_leads_outside_is_refused(name, server, known, tmp_path):
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("toy/a.txt", b"alpha")
        archive.writestr(zipfile.ZipInfo("x"), b"owned")
        archive.filelist[-1].filename = name
    server.bodies["/toy.zip"] = evil.getvalue()
    known(url_source(server, digest=sha(evil.getvalue())))
    with pytest.raises(AssetError, match="leads outside"):
        fetch("toy")
    assert not list(tmp_path.rglob("out.txt"))


def test_a_link_in_a_zip_is_refused(server, known):
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        link = zipfile.ZipInfo("toy/a.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../../secret")
    server.bodies["/toy.zip"] = evil.getvalue()
    known(url_source(server, digest=sha(evil.getvalue())))
    with pytest.raises(AssetError, match="leads outside"):
        fetch("toy")


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "short file", "lost file", "other sha256"])
def test_a_damaged_entry_is_built_anew(damage, server, known):
    known(url_source(server))
    folder = fetch("toy")
    marker = folder / cache.MARKER
    if damage == "no marker":
        marker.unlink()
    elif damage == "torn marker":
        marker.write_text(marker.read_text()[:40])
    elif damage == "short file":
        (folder / "a.txt").write_bytes(b"al")
    elif damage == "lost file":
        (folder / "b/c.txt").unlink()
    else:
        marker.write_text(marker.read_text().replace(sha(BODY), "1" * 64))
    (folder.parent / ".staging-dead").mkdir()
    with pytest.raises(AssetError, match="not in the cache"):
        fetch("toy", offline=True)
    assert fetch("toy") == folder
    assert (folder / "a.txt").read_bytes() == b"alpha" and (folder / "b/c.txt").exists()
    assert leftovers(folder.parents[2]) == ["url"], "what a killed process left is cleared away"


def test_too_little_disk_is_told_before_and_while_writing(server, known, monkeypatch, own_cache):
    known(url_source(server, need=1 << 60))
    with pytest.raises(AssetError, match=r"needs \d+ MiB of disk"):
        fetch("toy")
    assert server.asked == [], "nothing is downloaded that cannot be kept"

    def full(delivered: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    known(url_source(server, builder=full))
    with pytest.raises(AssetError, match=r"the disk of .* is full"):
        fetch("toy")
    assert leftovers(own_cache) == []


def test_a_cache_that_cannot_be_made_is_told(known, server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RECLLM_CACHE", str(tmp_path / "file"))
    known(url_source(server))
    with pytest.raises(AssetError, match="RECLLM_CACHE"):
        fetch("toy")


def test_unknown_names_and_sources_are_named(known, server):
    known(url_source(server))
    with pytest.raises(AssetError, match=r"no asset is called 'toyy'; known: .*ml-100k"):
        fetch("toyy")
    with pytest.raises(AssetError, match="no source 'pypi'; it has url"):
        fetch("toy", sources=["pypi"])


def test_entries_of_two_sources_lie_side_by_side(server, known, monkeypatch):
    server.bodies["/o/r/resolve/main/toy.zip"] = BODY
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    known(url_source(server), Source("hub", "o/r@main", {"toy.zip": sha(BODY)}, unpack_toy, 0))
    first, second = fetch("toy"), fetch("toy", sources=["hub"])
    assert first != second and source_of("toy", sources=["hub"])["source"]["kind"] == "hub"
    assert fetch("toy") == first


CHILD = """
import sys, time
from pathlib import Path
from recllm.assets import Asset, Source, build, fetch, registry
address, digest, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
def slow(delivered, folder):
    (folder / "a.txt").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(seconds)
    build.unpack(delivered, folder, prefix="toy/")
source = Source("url", address, {"toy.zip": digest}, slow, 0)
registry.ASSETS["toy"] = Asset("toy", "data set", "", "CC0-1.0", "", (source,), {"a.txt": None})
print((fetch("toy") / "a.txt").read_text())
"""


def child(server, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, f"{server.address}/toy.zip", sha(BODY), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_fetch_leaves_no_entry(server, known, own_cache):
    running = child(server, 60)
    assert running.stdout.readline() == "building\n"
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert leftovers(own_cache)[0].startswith(".staging-")
    known(url_source(server))
    with pytest.raises(AssetError):
        fetch("toy", offline=True)
    assert (fetch("toy") / "a.txt").read_bytes() == b"alpha"
    assert leftovers(own_cache) == ["url"]


def test_two_processes_build_once(server, own_cache):
    first, second = child(server, 0.7), child(server, 0.7)
    said = [first.communicate()[0], second.communicate()[0]]
    assert first.returncode == second.returncode == 0
    assert all(text.endswith("alpha\n") for text in said)
    assert server.asked == ["/toy.zip"]
    assert sum("another process is fetching it" in text for text in said) == 1


def test_movielens_100k_from_grouplens_has_the_shape_of_the_wheel(tmp_path):
    flags = lambda *on: "|".join("1" if index in on else "0" for index in range(19))  # noqa: E731
    films = [
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags(3, 4, 5)}",
        f"113|Horseman on the Roof, The (Hussard sur le toit, Le) (1995)|d||u|{flags(8)}",
        f"267|unknown||||{flags(0)}",
        f"543|Mis\u00e9rables, Les (1995) |d||u|{flags(8, 12)}",
        f"1412|Land Before Time III: The Time of the Great Giving (1995) (V)|d||u|{flags(3, 4)}",
    ]
    delivered = deliver_zip(
        tmp_path,
        {
            "ml-100k/u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
            "ml-100k/u.user": "1|24|M|technician|85711\n",
            "ml-100k/u.item": "\n".join(films) + "\n",
        },
    )
    build.movielens_100k(delivered, tmp_path)
    assert (tmp_path / "ml-100k.inter").read_bytes() == (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n186\t302\t3\t891717742\n"
    )
    assert (tmp_path / "ml-100k.user").read_text() == (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n"
    )
    # Rows as they stand in the wheel's file.
    assert (tmp_path / "ml-100k.item").read_text(encoding="utf-8").splitlines() == [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tToy Story\t1995\tAnimation Children's Comedy",
        "113\tHorseman on the Roof, The (Hussard sur le toit, Le)\t1995\tDrama",
        "267\tunkonwn\tunkonwn\tunknown",
        "543\tMis\u00e9rables, Les\t1995\tDrama Musical",
        "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's",
    ]


def test_movielens_1m_from_grouplens_has_the_shape_of_the_wheel(tmp_path):
    delivered = deliver_zip(
        tmp_path,
        {
            "ml-1m/movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n"
            "574::Slingshot, The (K\u00e5disbellan ) (1993)::Comedy|Drama\n",
            "ml-1m/users.dat": "1::F::1::10::48067\n",
            "ml-1m/ratings.dat": "1::574::5::978300760\n",
        },
    )
    build.movielens_1m(delivered, tmp_path)
    assert (tmp_path / "ml-1m.item").read_bytes().decode().split("\r\n") == [
        "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token",
        "Toy Story (1995)\tToy Story\t1995\tAnimation Children's Comedy",
        "Slingshot, The (K\u00e5disbellan ) (1993)\tSlingshot, The (K\u00e5disbellan )\t1993\tComedy Drama",
        "",
    ]
    assert (tmp_path / "ml-1m.inter").read_bytes().decode().split("\r\n")[1] == (
        "1m_1\tSlingshot, The (K\u00e5disbellan ) (1993)\t5\t978300760"
    )
    assert (tmp_path / "ml-1m.user").read_bytes().decode().split("\r\n")[1] == "1m_1\t1\tF\t10\t48067"


def deliver_zip(folder: Path, members: dict[str, str]) -> Path:
    delivered = folder / "delivered"
    delivered.mkdir()
    (delivered / "x.zip").write_bytes(zipped({name: text.encode("latin-1") for name, text in members.items()}))
    return delivered


def test_the_registry_is_pinned():
    for name, asset in assets.ASSETS.items():
        assert asset.name == name and asset.licence and asset.files and asset.sources
        for source in asset.sources:
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in source.sha256.values())
            pin = {"pypi": r".+==[\w.]+", "hub": r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", "url": r"https://.+"}[source.kind]
            assert re.fullmatch(pin, source.location), source.location
    known = {"ml-100k", "ml-1m", "mat-data-foursquare", "smollm2-135m-instruct", "all-minilm-l6-v2"}
    assert known <= set(assets.ASSETS)


def test_a_failed_conversion_tells_why(tmp_path):
    delivered, out = tmp_path / "delivered", tmp_path / "out"
    delivered.mkdir()
    out.mkdir()
    (delivered / "x.whl").write_bytes(zipped({"pkg/model.gguf": b"not a model"}))
    with pytest.raises(ValueError, match=r"converting model\.gguf failed with status 1"):
        build.gguf_model(delivered, out, member="pkg/model.gguf")


@pytest.mark.slow
def test_a_gguf_file_becomes_a_trainable_folder(tmp_path):
    """A tiny llama in Q4_1: bfloat16 weights, no quantiser's marks, chat template, digits as words of their own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recllm.assets.gguf import convert

    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    exact = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=path.name, dtype=torch.float32)
    convert(path, tmp_path / "out", context=128)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    for (name, before), after in zip(exact.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(before.to(torch.bfloat16).float(), after), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "im_start" in tokenizer.chat_template and tokenizer.model_max_length == 128
    assert tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 12")[1:] == [
        ("\u0120", (1, 2)),
        ("1", (2, 3)),
        ("2", (3, 4)),
    ]
    assert (tmp_path / "out/generation_config.json").exists()


def write_tiny_gguf(path: Path) -> Path:
    import gguf
    import numpy as np

    width, heads, inner, layers = 64, 2, 128, 1
    letters = [chr(code) for code in range(33, 127)] + ["\u0120", "ab"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * len(letters))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ '<|im_start|>' + messages[0]['content'] }}")
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), width)}
    for part, shape in {
        "q": (width, width),
        "k": (width, width),
        "v": (width, width),
        "output": (width, width),
    }.items():
        shapes[f"blk.0.attn_{part}"] = shape
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner)}
    for name, shape in shapes.items():
        data = gguf.quants.quantize(random.normal(size=shape).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_every_source_calls_its_builder_rightly(name, tmp_path):
    """No test may fetch the real thing, but a builder that does not take its arguments can be told without."""
    for source in assets.ASSETS[name].sources:
        inspect.signature(source.build).bind(tmp_path, tmp_path)
