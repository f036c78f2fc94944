"""Published architectures as their configuration files say, and each once more in small."""

from nablaflow.models.architectures.blueprint import Blueprint
from nablaflow.models.architectures.chroma import CHROMA
from nablaflow.models.architectures.ddpm import DDPM
from nablaflow.models.architectures.flux import FLUX
from nablaflow.models.architectures.flux2_klein import FLUX2_KLEIN
from nablaflow.models.architectures.qwen_image import QWEN_IMAGE
from nablaflow.models.architectures.sd15 import SD15
from nablaflow.models.architectures.sd21 import SD21
from nablaflow.models.architectures.sd35 import SD35
from nablaflow.models.architectures.sdxl import SDXL
from nablaflow.models.architectures.z_image import Z_IMAGE

ARCHITECTURES: dict[str, Blueprint] = {
    "sd15": SD15,
    "sd21": SD21,
    "sdxl": SDXL,
    "ddpm": DDPM,
    "sd35": SD35,
    "flux": FLUX,
    "flux2-klein": FLUX2_KLEIN,
    "z-image": Z_IMAGE,
    "qwen-image": QWEN_IMAGE,
    "chroma": CHROMA,
}
"""One of each family that is served; adding an architecture is one file and one line here."""
