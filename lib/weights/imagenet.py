"""ImageNet weights of the ResNet trunks, from a file, torchvision's cache or its server; none is no reason to stop."""

import functools
import socket
import threading
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from lib.errors import WeightsError
from lib.weights.adapters import KINDS, resnet_layers, unwrap
from lib.weights.unpickle import load_file, stay_on_host

TIMEOUT_S = 4.0
Source = tuple[dict[str, Tensor] | None, str]


def imagenet_state(layers: int, file: str = "") -> Source:
    """Trunk weights of ResNet-`layers` trained on ImageNet, or None, and a plain sentence for the log.

    An explicit `file` is used or is an error. Otherwise torchvision's cache, then its server with a timeout of seconds;
    when both fail, None: the run starts from scratch.

    Raises:
        WeightsError: `file` cannot be read, or is not a ResNet of that depth.
    """
    if file:
        return _from_file(file, layers), f"ResNet-{layers} trunk from {file} (MODEL.INIT_FILE)"
    url = get_model_weights(f"resnet{layers}")["IMAGENET1K_V1"].url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    hint = f"get {url} by other means and set MODEL.INIT_FILE to it for ImageNet weights"
    if not cached.is_file():
        problem = _fetch(url)
        if problem:
            return None, f"from scratch: no ImageNet weights ({problem}); {hint}"
    try:
        return _from_file(cached, layers), f"ResNet-{layers} trunk from torchvision's ImageNet weights ({cached.name})"
    except WeightsError as error:
        return None, f"from scratch: the cached ImageNet weights are unusable ({error}); {hint}"


def _from_file(path: str | Path, layers: int) -> dict[str, Tensor]:
    state = unwrap(load_file(path)[0], str(path)).state_dict
    found = resnet_layers(state)
    if found != layers or not KINDS["resnet"].matches(state):
        what = f"a ResNet-{found}" if found else "no ResNet"
        raise WeightsError(f"{path}: holds {what}, expected a torchvision ResNet-{layers}; set MODEL.INIT_FILE to that")
    return {key: value for key, value in state.items() if key.startswith(("conv1.", "bn1.", "layer"))}


@functools.cache  # a second model in the same process does not wait again for a server that did not answer
def _fetch(url: str) -> str:
    """Download into torchvision's cache; '' or why it did not work."""
    answer: list[str] = []

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
            answer.append("")
        except Exception as error:  # whatever goes wrong on the way only means: no download
            answer.append(f"{type(error).__name__}: {error}"[:200])

    # Name resolution ignores timeouts, so the first contact runs in a thread that may be left behind.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT_S)
    if not answer:
        return f"the server did not answer within {2 * TIMEOUT_S:.0f} s"
    if answer[0]:
        return answer[0]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        torch.hub.load_state_dict_from_url(url, map_location=stay_on_host, check_hash=True, weights_only=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        socket.setdefaulttimeout(before)
    return ""
