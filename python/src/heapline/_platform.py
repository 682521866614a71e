"""Where Heapline works, and where its programs are.

Importing the package works anywhere; what needs more says here, in one sentence, what is missing.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from typing import Optional


def require_native() -> None:
    """RuntimeError where `heapline._native` cannot be imported."""
    try:
        import heapline._native  # noqa: F401
    except ImportError as error:
        reason = unsupported() or f"its compiled half cannot be loaded ({error}): install the package again"
        raise RuntimeError(f"heapline does not work here: {reason}") from error


def unsupported() -> Optional[str]:
    """Why this interpreter cannot be traced, if so."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64") or sys.maxsize <= 2**32:
        return f"it traces 64-bit programs on Linux on x86-64, and this is {system} on {machine}"
    if sys.implementation.name != "cpython":
        return f"it traces CPython, and this is {sys.implementation.name}"
    if not (3, 9) <= sys.version_info[:2] <= (3, 15):
        return f"it knows CPython 3.9 to 3.15, and this is {platform.python_version()}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it does not trace the free-threaded CPython's objects"
    libc, _version = platform.libc_ver()
    if libc and libc != "glibc":
        return f"it needs glibc, and this is {libc}"
    return None


def program(name: str) -> str:
    """The path of `aggregator` or `report` as the wheel installed it. RuntimeError where it is not there.

    Never searched for on PATH: another program may have such a name.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    folders = [
        sysconfig.get_path("scripts"),
        # pip install --user
        sysconfig.get_path("scripts", f"{os.name}_user"),
        # pip install --target, --prefix
        os.path.join(os.path.dirname(package), "bin"),
        os.path.join(os.path.dirname(package), *[os.pardir] * 3, "bin"),
    ]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.normpath(path)
    reason = unsupported() or f"its program {name!r} is in none of {', '.join(map(repr, folders))}"
    raise RuntimeError(f"heapline does not work here: {reason}")
