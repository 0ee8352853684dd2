"""What a new configuration changes in a running daemon, and what it cannot change."""

from nitro_vsock.daemon.config import DaemonConfig, VmConfig

LIVE = ("proxy", "publish", "forward_listen")
"""What changes in a guest while it runs, and without an effect on its connections."""


def merged(running: DaemonConfig, wanted: DaemonConfig) -> tuple[DaemonConfig, list[str]]:
    """The running configuration with everything of the wanted one that can change now.

    Guests are the same if they have the same CID.

    Args:
        running: What is served.
        wanted: What was read.

    Returns:
        The configuration to be served from now on, and the settings that differ and need a restart.
    """
    by_cid = {vm.guest_cid: vm for vm in wanted.vms}
    vms = []
    left: list[str] = []
    for vm in running.vms:
        new = by_cid.pop(vm.guest_cid, None)
        if new is None:
            left.append(f"guest {vm.guest_cid} is gone")
            vms.append(vm)
            continue
        vms.append(vm.model_copy(update={name: getattr(new, name) for name in LIVE}))
        fixed = (name for name in VmConfig.model_fields if name not in LIVE)
        left += [f"guest {vm.guest_cid}: {name}" for name in fixed if getattr(vm, name) != getattr(new, name)]
    left += [f"guest {cid} is new" for cid in by_cid]
    left += [name for name in ("stats", "allow_uid") if getattr(running, name) != getattr(wanted, name)]
    update = {"vms": tuple(vms), "proxy_allowlist": wanted.proxy_allowlist}
    return running.model_copy(update=update), left
