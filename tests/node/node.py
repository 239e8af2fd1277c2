"""One Kubernetes node in namespaces of its own: control plane, kubelet, containerd, kube-proxy, DNS, NetworkPolicies.

Every process lives in the namespaces of one init, and dies with it; the init dies with the process that started it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.assets.build import Progress
from tests.node import configuration, images, machine

_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
_ENTER = ("--mount", "--net", "--pid", "--uts", "--ipc")
_ISSUER = "https://kubernetes.default.svc"


class Node:
    """Started by `up`; `enter` is the prefix of commands that run in its namespaces."""

    def __init__(
        self, directory: Path, control: inventory.Binaries, own: Mapping[str, Path], environment: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self.kubeconfig = configuration.kubeconfig(directory, "admin")
        self.enter: list[str] = []
        self._control = control
        self._own = own
        self._environment = dict(environment)
        self._unshare: subprocess.Popen[bytes] | None = None
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, progress: Progress) -> None:
        """Until the node is Ready and the image archives can be imported."""
        for name in ("kubelet", "containerd", "etcd", "log"):
            (self.directory / name).mkdir()
        configuration.write(self.directory, images.PAUSE)
        self._start_init()
        self._start_control_plane()
        self._await("the API server", lambda: self._kubectl("get", "--raw", "/readyz"))
        role = ("--clusterrole=system:kubelet-api-admin", f"--user={configuration.KUBELET_CLIENT}")
        assert self._kubectl("create", "clusterrolebinding", "kubelet-client", *role)
        self._start_node()
        ready = ("wait", "--for=condition=Ready", f"node/{configuration.NAME}", "--timeout=1s")
        self._await("the node", lambda: self._kubectl(*ready))
        machine.favour_pods()
        self._start_policies()  # needs the Node object
        progress("the node is Ready")

    def load(self, archives: list[Path]) -> None:
        """Make images known to the kubelet."""
        for archive in archives:
            done = self.run("ctr", "--namespace", "k8s.io", "images", "import", "--all-platforms", str(archive))
            assert done.returncode == 0, f"{archive}: {done.stderr}"

    def run(self, *command: str, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
        """A command in the node's namespaces; exit code, output and error output, whatever they are."""
        return subprocess.run(
            [*self.enter, *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def down(self) -> None:
        """End every process of the node. What they had mounted, linked or filtered ends with the namespaces."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait()
        for service in self._services.values():
            service.wait(30)
        self._until(_no_cgroup_is_busy, 30, "processes of the node are still there")
        machine.remove_cgroups()

    def dead(self) -> list[str]:
        """Parts of the node that ended by themselves; nothing of it ever should."""
        return [name for name, process in self._services.items() if process.poll() is not None]

    def _start_init(self) -> None:
        log = (self.directory / "log" / "init.log").open("wb")
        init = str(Path(__file__).with_name("init.sh"))
        command = ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "bash", init, str(self.directory)]
        with log:
            self._unshare = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._await("the namespaces", (self.directory / "initialised").exists)
        pid = self._unshare.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.enter = ["nsenter", "--target", child, *_ENTER, f"--wd={images.ROOT}", "--"]

    def _start_control_plane(self) -> None:
        pki, etc = self.directory / "pki", self.directory / "etc"
        self._start(
            "etcd",
            self._control.etcd,
            f"--data-dir={self.directory / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._start("containerd", Path(shutil.which("containerd") or ""), "--config", str(etc / "containerd.toml"))
        self._start(
            "kube-apiserver",
            self._control.kube_apiserver,
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={configuration.ADDRESS}",
            f"--cert-dir={pki}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--service-cluster-ip-range={configuration.SERVICES}",
            f"--token-auth-file={etc / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={_ISSUER}",
            f"--api-audiences={_ISSUER}",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        )

    def _start_node(self) -> None:
        pki, etc = self.directory / "pki", self.directory / "etc"

        def access(user: str) -> str:
            return f"--kubeconfig={configuration.kubeconfig(self.directory, user)}"

        self._start(
            "kube-controller-manager",
            self._control.kube_controller_manager,
            access("controller-manager"),
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={pki / 'service-accounts.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cert-dir={pki}",
        )
        self._start(
            "kube-scheduler", self._own["kube-scheduler"], f"--config={etc / 'scheduler.yaml'}", "--secure-port=0"
        )
        self._start(
            "kubelet",
            self._own["kubelet"],
            access("kubelet"),
            f"--config={etc / 'kubelet.yaml'}",
            f"--node-ip={configuration.ADDRESS}",
            f"--hostname-override={configuration.NAME}",
        )
        self._start("kube-proxy", self._own["kube-proxy"], f"--config={etc / 'proxy.yaml'}")
        self._start("coredns", self._own["coredns"], "-conf", str(etc / "Corefile"))

    def _start_policies(self) -> None:
        self._start(
            "netpol",
            self._own["netpol"],
            f"--kubeconfig={configuration.kubeconfig(self.directory, 'netpol')}",
            f"--hostname-override={configuration.NAME}",
            f"--service-cluster-ip-range={configuration.SERVICES}",
            "--enable-ipv6=false",
        )

    def _start(self, name: str, binary: Path, *arguments: str) -> None:
        with (self.directory / "log" / f"{name}.log").open("wb") as log:
            self._services[name] = subprocess.Popen(
                [*self.enter, str(binary), *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _kubectl(self, *arguments: str) -> bool:
        return self.run(str(self._control.kubectl), "--kubeconfig", str(self.kubeconfig), *arguments).returncode == 0

    def _await(self, what: str, ready: Callable[[], bool], seconds: float = 120.0) -> None:
        self._until(ready, seconds, f"{what} did not come up within {seconds:.0f} s")

    def _until(self, ready: Callable[[], bool], seconds: float, problem: str) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self.dead() if self._unshare is not None and self._unshare.poll() is None else []
            assert not ended, f"{ended} ended; see {self.directory / 'log'}"
            assert time.monotonic() < deadline, f"{problem}; see {self.directory / 'log'}"
            time.sleep(0.2)


def _no_cgroup_is_busy() -> bool:
    return not any(file.read_text().strip() for top in machine.cgroups() for file in top.rglob("cgroup.procs"))


def environment(kubeconfig: Path, tools: Path) -> dict[str, str]:
    """Of commands on the node: `tools` holds kubectl and helm under these names."""
    return {
        "HOME": str(kubeconfig.parent),
        "KUBECONFIG": str(kubeconfig),
        "LANG": "C.UTF-8",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
