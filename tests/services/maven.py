"""Java libraries for test servers, by Maven from a pom.xml beside the server's own files."""

import shutil
import threading
from pathlib import Path

from tests.services.cache import run
from tests.services.packages import java, maven

_local_repository = threading.Lock()
"""Maven's, which two at a time may spoil."""


def copy_jars(pom: Path, folder: Path) -> None:
    """Puts a pom's runtime dependencies into folder/lib. ServiceMissing when Maven cannot."""
    shutil.copy(pom, folder / "pom.xml")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
    with _local_repository:
        run([maven(), "-q", "-B", *goal], f"jars of {pom.parent.name}/pom.xml", cwd=folder)


def class_path(folder: Path) -> str:
    """folder/lib's jars in sorted order, and folder/classes first where there is one."""
    classes = [folder / "classes"] if (folder / "classes").is_dir() else []
    return ":".join(str(path) for path in [*classes, *sorted((folder / "lib").glob("*.jar"))])


def compile_java(source: Path, folder: Path) -> None:
    """Compiles one source file to folder/classes with the Eclipse compiler of folder/lib, which needs no JDK."""
    compiler = "org.eclipse.jdt.internal.compiler.batch.Main"
    classes = folder / "classes"
    options = ["-17", "-proc:none", "-encoding", "UTF-8", "-nowarn", "-d", str(classes), "-cp", class_path(folder)]
    run([java(), "-cp", class_path(folder), compiler, *options, source], f"compiling {source.name}")
