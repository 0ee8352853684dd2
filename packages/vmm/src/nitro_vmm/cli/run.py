"""``vmm run``."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli import codes, command, launching
from nitro_vmm.cli.command import PROGRAM, RUN_EXAMPLE, complain
from nitro_vmm.cli.configure import add_options, config_of, plain_config
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.problems import complain_of
from nitro_vmm.cli.streams import log_as_json
from nitro_vmm.cli.told import Told
from nitro_vmm.run.process import die_with_parent

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

UNWANTED: Final = {ExitCode.BOOT_TIMEOUT, ExitCode.PANIC, ExitCode.CRASH}
"""Ends of enclaves that somebody will want to find the cause of."""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    run = commands.add_parser(
        "run",
        help="boot an enclave image file and wait for its end",
        description="Boot an enclave image file (EIF); --console or --debug-mode shows its console.",
        epilog=RUN_EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(execute=execute)
    add_options(run)
    run.add_argument(
        "--json", action="store_true", help="report the end as JSON; the console then goes to standard error"
    )
    run.add_argument(
        *("--detach", "-d"),
        action="store_true",
        help="return when it runs, and print its name: see vmm ps, logs, console, stop",
    )
    run.add_argument(
        "--die-with-parent",
        action="store_true",
        help="end when the program that started vmm run ends, however it does",
    )
    run.add_argument("--rm", action="store_true", help="with --detach: forget it when it has ended")
    run.add_argument(
        "--timeline",
        metavar="FILE",
        help="write when what happened, at the end: a web page (FILE.html) or JSON (FILE.json)",
    )
    run.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)  # how `launch` starts the process
    run.add_argument(
        "--exit-code-from",
        choices=["vmm", "app"],
        default="vmm",
        help="exit with what the image's program exited with, where its init says so (default: vmm)",
    )
    run.add_argument(
        "--raw-console",
        action="store_true",
        help="let all escape sequences of the guest through to a terminal, not only colours",
    )
    run.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="what vmm itself says on standard error: text, or a JSON object per line (default: text)",
    )
    run.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def execute(arguments: argparse.Namespace, started_s: float) -> int:
    """Boot the image and wait for its end."""
    if arguments.die_with_parent:
        if arguments.detach:
            hint = "one in the background outlives whoever launched it"
            return complain(
                "--die-with-parent and --detach exclude each other",
                hint=hint,
                code=ExitCode.USAGE,
                name=codes.COMMAND_LINE,
            )
        die_with_parent()
    if arguments.detach and arguments.ready_fd is None:
        from nitro_vmm.cli.detach import launch  # noqa: PLC0415 - in the foreground nobody needs it

        return launch(arguments)
    if arguments.log_format == "json":
        log_as_json()
    level = logging.ERROR if arguments.quiet else logging.WARNING
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=level, handlers=[Told()])

    def say(text: str, **fields: object) -> None:
        if not arguments.quiet:
            command.say(text, **fields)

    launching.begin()
    if arguments.ready_fd is not None:
        from nitro_vmm.cli.detach import run_detached  # noqa: PLC0415

        return run_detached(arguments)
    path = timeline_file = None
    try:
        config = plain_config(arguments) or config_of(arguments)
        path = config.eif_path
        if arguments.timeline is not None:
            from nitro_vmm.cli.timeline_file import TimelineFile  # noqa: PLC0415 - few want one

            timeline_file = TimelineFile(arguments.timeline, path)
        # Imported here, so that --help and --version need not wait for the machine.
        from nitro_vmm.run.attach import attach  # noqa: PLC0415

        console = sys.stderr if arguments.json else sys.stdout
        attached = attach(
            config,
            console_fd=console.fileno(),
            raw_console=arguments.raw_console,
            say=say,
            started_s=started_s,
            launched=launching.end,
        )
    except Exception as error:  # noqa: BLE001 - what is not known there is raised again
        return complain_of(error, path, daemon=arguments.vhost_user_path is not None)
    finally:
        launching.end()
    from nitro_vmm.cli.report import application_code, exit_code_of, report  # noqa: PLC0415

    result = attached.result
    code = exit_code_of(result, attached.signal)
    if arguments.exit_code_from == "app" and code == ExitCode.ENDED:
        code = application_code(result.application)
    if arguments.json:
        import json  # noqa: PLC0415 - not needed for most

        print(json.dumps(report(result, code), indent=2))
    beat = "no heartbeat" if result.heartbeat_s is None else f"heartbeat after {result.heartbeat_s:.2f} s"
    application = "" if result.application is None else f"; {result.application}"
    text = f"{result.reason} after {result.seconds:.2f} s; {beat}{application}"
    say(text, report=report(result, code))
    if result.cause is not None:
        say(f"why: {result.cause.message} ({result.cause.code})", code=result.cause.code)
        say(f"  hint: {result.cause.hint}")
    if code in UNWANTED and not attached.console:
        say("--console shows what it printed")
    if timeline_file is not None:
        timeline_file.write(attached.timeline, result)
    return code
