"""What deploy/ says exists: every command, flag, limit, argument, variable and route."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import typer
import yaml

from unmask.cli import serve
from unmask.serve.guard import OPEN
from unmask.serve.limits import Limits
from unmask.serve.routes import ROUTERS

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "deploy").rglob("*.yaml"))
DOCUMENTS = [d for path in FILES for d in yaml.safe_load_all(path.read_text())]
ROUTES = {route.path for router in ROUTERS for route in router.routes}
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src/unmask").rglob("*.py"))


def of(kind):
    (found,) = (d for d in DOCUMENTS if d["kind"] == kind)
    return found


def containers():
    ray = of("RayService")["spec"]["rayClusterConfig"]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    pods = [of("Deployment")["spec"]["template"], *(group["template"] for group in groups)]
    return [one for pod in pods for one in pod["spec"]["containers"]]


def flags():
    app = typer.Typer()
    app.command()(serve.run)
    return {name for param in typer.main.get_command(app).params for name in param.opts}


def test_the_command_has_every_flag():
    (pod,) = of("Deployment")["spec"]["template"]["spec"]["containers"]
    assert pod["command"][:2] == ["unmask", "serve"]
    names = [argument.partition("=")[0] for argument in pod["args"]]
    assert names
    assert set(names) <= flags()
    Limits.of([argument.removeprefix("--limit=") for argument in pod["args"] if argument.startswith("--limit=")])


def test_every_variable_is_read():
    names = {env["name"] for one in containers() for env in one["env"]}
    assert names == {"UNMASK_API_KEYS"}
    assert all(f'"{name}"' in SOURCE for name in names)


def test_probes_ask_routes_that_exist_and_ports_that_are_open():
    (pod,) = of("Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in pod["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = pod[probe]["httpGet"]
        assert asked["path"] in ROUTES
        assert ("GET", asked["path"]) in OPEN  # a kubelet has no key
        assert asked["port"] in ports
    assert f"--port={ports['http']}" in pod["args"]
    service = of("Service")["spec"]
    assert service["selector"] == of("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["ports"][0]["targetPort"] in ports


def test_pods_wait_for_the_drain():
    drain_s = Limits().drain_s
    (pod,) = (of("Deployment")["spec"]["template"]["spec"],)
    workers = of("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for one in [pod, *(group["template"]["spec"] for group in workers)]:
        assert one["terminationGracePeriodSeconds"] > drain_s


def test_the_ray_service_names_what_exists():
    config = yaml.safe_load(of("RayService")["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    module, _, name = app["import_path"].partition(":")
    text = (ROOT / "src" / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {name}(" in text
    said = re.search(rf"def {name}\(.*?given: (.*?)Keys come", text, flags=re.S)
    assert set(app["args"]) <= set(re.findall(r"\w+", said[1]))
    Limits.of(app["args"]["limits"])
    version = of("RayService")["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"rayproject/ray:{version}-" in (ROOT / "deploy/kubernetes/kuberay.yaml").read_text()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'unmask[ray]'")
@pytest.mark.filterwarnings("default")
def test_the_ray_service_can_be_built():
    from unmask.base.errors import BadInput
    from unmask.serve.replicas import build

    (app,) = yaml.safe_load(of("RayService")["spec"]["serveConfigV2"])["applications"]
    assert inspect.isfunction(build)
    build(app["args"])
    with pytest.raises(BadInput, match="'modle'"):
        build({"modle": "tiny"})
