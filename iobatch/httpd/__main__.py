"""Run the file server: `python -m iobatch.httpd DIRECTORY`; --help lists the options."""

import signal
import sys

if __name__ == "__main__":
    # Until the server can be stopped, SIGINT ends the program as SIGTERM does. Python's exception
    # would be shown with the traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from iobatch.httpd.program import main
    except ModuleNotFoundError as exc:
        if exc.name != "httptools":
            raise
        sys.exit("iobatch.httpd: httptools is not installed: pip install 'iobatch[httpd]'")
    sys.exit(main())
