"""The command line: run, check, plan, schema, demo, browse, latency, write, call, audit, modbus, buffer, gaps, trust,
profile, version.

Exit codes: 0 done or stopped, 1 a command that could not do its work, 2 bad configuration or wrong use, 3 storage
failed. What a command needs is imported inside it, so that `gateway version` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from gateway import cli_browse, cli_latency, cli_modbus
from gateway.cli_command import commands
from gateway.cli_profile import profiles
from gateway.cli_trust import trust
from gateway.command import (
    BAD_CONFIGURATION,
    DATA_DIR,
    STOPPED,
    STORAGE_FAILED,
    AnyFile,
    DataDir,
    File,
    complain,
    data_folder,
    load_file,
    on_loop,
)

app = typer.Typer(
    help="Collects from OPC UA and Modbus machines, delivers to MQTT and Kafka.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.add_typer(cli_modbus.app, name="modbus")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    try:
        app(args=arguments, prog_name="gateway")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return STOPPED


@app.command()
def run(
    file: File,
    listen: Annotated[
        str | None,
        typer.Option(envvar="GATEWAY_LISTEN", help="address:port of /health and /metrics, in place of the file's."),
    ] = None,
) -> None:
    """Run the gateway until it is told to stop (Ctrl-C, SIGTERM). A second signal stops at once."""
    settings, warnings = load_file(file)
    try:
        settings = settings.listening_on(listen) if listen else settings
    except ValueError as error:
        complain(f"--listen: {error}")
        raise typer.Exit(BAD_CONFIGURATION) from error
    from gateway.run import run as run_file

    raise typer.Exit(run_file(settings, warnings))


@app.command()
def check(
    file: File,
    elsewhere: Annotated[bool, typer.Option(help="It is for another host: do not look for its interfaces.")] = False,
) -> None:
    """Check a configuration file and print every mistake as file:line:column: message."""
    from gateway.workers_split import shares
    from pipelines.quantities import count

    settings, warnings = load_file(file, "elsewhere" if elsewhere else "wanted")
    complain(*warnings)
    tags = sum(len(device.tags) for device in settings.devices.values())
    counts = [count(len(settings.devices), "device"), count(tags, "tag"), count(len(settings.send), "route")]
    counts += [count(len(shares(settings)), "worker")] if settings.workers else []
    print(f"ok: {', '.join(counts)}")


@app.command()
def plan(file: File) -> None:
    """Print the OPC UA subscriptions and the Modbus requests that a configuration file leads to."""
    from gateway.plan import lines

    settings, warnings = load_file(file)
    complain(*warnings)
    for line in lines(settings):
        print(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    import json

    from gateway.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@app.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="End by itself after this long.", show_default=False)
    ] = None,
) -> None:
    """Show the gateway at work: two simulated machines, a broker, the gateway between them, and a live table."""
    from gateway.demo import demo as run_demo

    raise typer.Exit(on_loop(lambda: run_demo(seconds)))


app.add_typer(cli_browse.app)
app.add_typer(cli_latency.app)

app.add_typer(commands)
buffers = typer.Typer(help="Look into the buffers on disk, also while the gateway runs.", no_args_is_help=True)
app.add_typer(buffers, name="buffer")
app.add_typer(profiles, name="profile")
Route = Annotated[
    str, typer.Argument(help="Name of the buffer, as `gateway buffer ls` shows it: the route's.", show_default=False)
]


@contextmanager
def _read() -> Iterator[None]:
    """A clear line and code 1 where a buffer cannot be read."""
    try:
        yield
    except PermissionError as error:
        complain(f"{error.filename} cannot be read: do it as the gateway's user")
    except FileNotFoundError as error:
        complain(str(error))
    else:
        return
    raise typer.Exit(1)


@buffers.command("ls")
def buffer_ls(file: AnyFile = None, data_dir: DataDir = DATA_DIR) -> None:
    """List the buffers: what is in them, what of it is still to be delivered."""
    from gateway.buffer import listing

    with _read():
        for line in listing(data_folder(file, data_dir)):
            print(line)


@buffers.command("verify")
def buffer_verify(file: AnyFile = None, data_dir: DataDir = DATA_DIR) -> None:
    """Read every byte of the buffers; a line for each segment with damage. Code 1 where there is any."""
    from gateway.buffer import verify

    with _read():
        found = list(verify(data_folder(file, data_dir)))
    print("\n".join(found) or "ok")
    raise typer.Exit(1 if found else 0)


@buffers.command("cat")
def buffer_cat(
    route: Route,
    file: AnyFile = None,
    data_dir: DataDir = DATA_DIR,
    everything: Annotated[bool, typer.Option("--all", help="What is delivered already, too.")] = False,
) -> None:
    """Print what a route still has to deliver, a JSON line for each sample."""
    from gateway.buffer import samples

    with _read():
        for line in samples(data_folder(file, data_dir), route, everything):
            sys.stdout.buffer.write(line)


@app.command()
def gaps(
    file: AnyFile = None,
    data_dir: DataDir = DATA_DIR,
    since: Annotated[str | None, typer.Option(help="Of the last 24h, 30m, ...; default: all that is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each, times in ns since 1970.")] = False,
) -> None:
    """List what could not be kept or collected: when, of which device, how much, why. Also while the gateway runs."""
    from gateway.ledger import listing

    folder = data_folder(file, data_dir)
    try:
        lines, damaged = listing(folder, since, as_json)
    except ValueError as error:
        complain(f"--since: {error}")
        raise typer.Exit(BAD_CONFIGURATION) from error
    except OSError as error:
        complain(f"the gap ledger cannot be read: {error}")
        raise typer.Exit(STORAGE_FAILED) from error
    for line in lines:
        print(line)
    if damaged:
        complain(f"{damaged} damaged lines of the gap ledger are left out")


app.add_typer(trust, name="trust")


@app.command()
def version() -> None:
    """Print the version."""
    from gateway.version import version as known

    print(known())
