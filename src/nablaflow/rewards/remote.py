"""Rewards behind HTTP: a judge in a process, an environment or a machine of its own.

The protocol: ``POST url`` with a JSON object ``{"images": […], "prompts": […]}``, as many images as
prompts, each image a PNG in base64; the answer is a JSON object ``{"scores": […]}``, a number each.
Status 429 and 5xx mean "try again"; other errors are final, and their body's first line is shown.
"""

from __future__ import annotations

import base64
import json
import math
import os
import time
import urllib.error
import urllib.request
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch, Images

FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""


class Remote(RewardSettings):
    """A judge at ``url``. It has no gradient, so it suits the methods that need none."""

    url: str = Field(description="where the judge answers, http://… or https://…")
    batch: int = Field(default=16, ge=1, description="images in a request")
    timeout: float = Field(default=60.0, gt=0, description="seconds to wait for an answer")
    retries: int = Field(default=3, ge=0, description="further attempts after a failed one")
    token_variable: str | None = Field(
        default=None, description="environment variable with a token to send as Bearer"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} must begin with http:// or https://")
        return value

    def build(self, name: str, load: Load) -> NamedReward:
        if self.token_variable is not None and not os.environ.get(self.token_variable):
            raise UserError(f"reward.token_variable: {self.token_variable} is not set; export it")
        return NamedReward(name, Judge(self))


class Judge:
    """Scores by asking; every call asks anew."""

    def __init__(self, settings: Remote) -> None:
        self.settings = settings

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Score images in [0, 1], one prompt each; without a gradient.

        Raises:
            UserError: the judge is down, slow, or answers something other than a number an image.
        """
        pictures = [_png(image) for image in images.detach()]
        scores: list[float] = []
        size = self.settings.batch
        for start in range(0, len(pictures), size):
            part = slice(start, start + size)
            scores += self._ask(pictures[part], prompts[part])
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _ask(self, pictures: list[str], prompts: list[str]) -> list[float]:
        body = json.dumps({"images": pictures, "prompts": prompts}).encode()
        return self._scores(self._post(body), len(prompts))

    def _post(self, body: bytes) -> bytes:
        """The answer's body, after as many attempts as it takes or as there are."""
        attempts = self.settings.retries + 1
        problem = ""
        for attempt in range(attempts):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(
                    self._request(body), timeout=self.settings.timeout
                ) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}, {_first_line(error.read())}"
                if error.code != 429 and error.code < 500:
                    raise self._refusal(f"refuses ({problem}); mend the judge") from error
            except TimeoutError:
                problem = f"no answer in {self.settings.timeout:g} s"
            except urllib.error.URLError as error:
                slow = isinstance(error.reason, TimeoutError)
                problem = f"no answer in {self.settings.timeout:g} s" if slow else f"{error.reason}"
            except OSError as error:  # the connection broke off in the middle of an answer
                problem = str(error) or type(error).__name__
        raise self._refusal(
            f"cannot be used ({problem}; attempts: {attempts}); start it, check reward.url, or "
            "raise reward.timeout"
        )

    def _request(self, body: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.settings.token_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.settings.token_variable]}"
        return urllib.request.Request(self.settings.url, body, headers, method="POST")

    def _scores(self, answer: bytes, number: int) -> list[float]:
        try:
            found: Any = json.loads(answer)
        except ValueError:
            raise self._refusal(
                f"answers no JSON ({_first_line(answer)}); it must answer "
                '{"scores": [a number an image]}'
            ) from None
        scores = found.get("scores") if isinstance(found, dict) else None
        if not isinstance(scores, list):
            raise self._refusal('answers no list of "scores"; it must give a number an image')
        if len(scores) != number:
            raise self._refusal(
                f"answers {len(scores)} scores for {number} images; it must give one each"
            )
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise self._refusal(f"answers the score {_short(repr(score))}; it must be a number")
            if not math.isfinite(score):
                raise self._refusal(f"answers the score {score}; it must be a finite number")
        return [float(score) for score in scores]

    def _refusal(self, what: str) -> UserError:
        return UserError(f"reward: the judge at {self.settings.url} {what}")


def _png(image: Tensor) -> str:
    """One image (3, h, w) in [0, 1], rounded to 8 bits, as a PNG in base64."""
    levels = (image * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    buffer = BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _first_line(body: bytes) -> str:
    lines = body.decode(errors="replace").strip().splitlines()
    return _short(lines[0]) if lines else "an empty body"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
