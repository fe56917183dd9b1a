"""The program: ``ginnel``, and ``python -m ginnel``."""

import _signal  # type: ignore[import-not-found]

# What the module `signal` imports takes as long as Python's own start. Meanwhile Ctrl-C ends us as it ends any other
# program, without a trace; who only imports `ginnel.cli` keeps his own way.
_signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from ginnel.cli import main as main  # noqa: E402

if __name__ == "__main__":
    main()
