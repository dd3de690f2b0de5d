"""`python -m passerby_server`: `passerby serve` without the client."""

import typer

from passerby_server.cli import serve

if __name__ == "__main__":
    typer.run(serve)
