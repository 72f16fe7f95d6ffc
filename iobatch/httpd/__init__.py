"""The file server, a program: `python -m iobatch.httpd DIRECTORY`. It has no public names."""
