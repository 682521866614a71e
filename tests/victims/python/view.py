"""What an interpreter tells of its own allocators, in one line: their name, and what pymalloc prints."""

import os
import sys
import tempfile


def name():
    for module in ("_testinternalcapi", "_testcapi"):
        try:
            return __import__(module).pymem_getallocatorsname()
        except (ImportError, AttributeError):
            continue
        except RuntimeError as error:
            return str(error)
    return "no test module"


def statistics():
    """How often pymalloc says that it is in use."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        sys._debugmallocstats()
        os.dup2(kept, 2)
        os.close(kept)
        file.seek(0)
        return file.read().count(b"Small block threshold")


def view():
    return name(), statistics(), sys.getallocatedblocks() > 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.path.insert(0, sys.argv[1])
        import wrapper

        wrapper.wrap()
        kept = bytearray(300_000)
        wrapped = view()
        wrapper.unwrap()
        print(wrapped, wrapper.count() > 0, end=" ")
    print(view())
