"""Entries of a cache: those beside a source, and one of a store at hand."""

from pathlib import Path

from mea_graph.data.store import Store
from mea_graph.data.store_files import write_made


def entries(source: Path) -> list[Path]:
    root = source.with_name(source.name + ".mea-cache")
    return sorted(p for p in root.iterdir() if p.is_dir()) if root.exists() else []


def write_store(store: Store, folder: Path) -> None:
    write_made(lambda: store, folder.parent, lambda _: folder)
