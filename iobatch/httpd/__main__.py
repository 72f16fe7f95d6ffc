"""Run the file server: `python -m iobatch.httpd DIRECTORY`; --help lists the options."""

import sys

if __name__ == "__main__":
    try:
        from iobatch.httpd.program import main
    except ModuleNotFoundError as exc:
        if exc.name != "httptools":
            raise
        sys.exit("iobatch.httpd: httptools is not installed: pip install 'iobatch[httpd]'")
    sys.exit(main())
