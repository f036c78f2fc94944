"""Rewards behind HTTP: a judge in a process, an environment or a machine of its own.

The protocol: ``POST url`` with a JSON object ``{"images": […], "prompts": […]}``, as many images as
prompts, each image a PNG in base64; the answer is a JSON object ``{"scores": […]}``, a number each.
Status 429 and 5xx mean "try again", after the seconds of ``Retry-After`` if given; every other but
2xx is final, redirects too, and the first line of its body is shown.
"""

from __future__ import annotations

import base64
import json
import os
import time
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from pydantic import Field, field_validator
from rich.console import Console
from torch import Tensor

from nablaflow.addresses import is_masked, masked_url
from nablaflow.errors import UserError, printable
from nablaflow.rewards.ahead import Begun, GoesAhead, Queue
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.post import NoReplyError, Reply, post
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch, Images

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt; each further pause is twice as long, up to the longest."""


class Remote(RewardSettings):
    """A judge at ``url``. It has no gradient, so it suits the methods that need none."""

    url: str = Field(description="where the judge answers, http://… or https://…")
    batch: int = Field(default=16, ge=1, description="images in a request")
    timeout: float = Field(default=60.0, gt=0, description="seconds until an answer is whole")
    retries: int = Field(
        default=6, ge=0, description="further attempts after a failed one; 6 take a minute"
    )
    token_variable: str | None = Field(
        default=None, description="environment variable with a token to send as Bearer"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"{masked_url(value)!r} must begin with http:// or https://")
        if is_masked(value):
            raise ValueError(
                f"{value} lacks what was left out when it was saved; give reward.url=… with it"
            )
        if not _is_address(value):
            shown = masked_url(value)
            raise ValueError(f"{shown!r} is no address; give http://host:port/path in ASCII")
        return value

    def build(self, name: str, load: Load) -> NamedReward:
        if self.token_variable is not None and not os.environ.get(self.token_variable):
            raise UserError(f"reward.token_variable: {self.token_variable} is not set; export it")
        token = self.token() or ""
        if not (token.isascii() and token.isprintable()):
            raise UserError(
                f"reward.token_variable: {self.token_variable} must be one line of ASCII; export it"
            )
        return NamedReward(name, Judge(self))

    def token(self) -> str | None:
        """What is sent as Bearer; None without ``token_variable``."""
        return None if self.token_variable is None else os.environ[self.token_variable].strip()


def _is_address(url: str) -> bool:
    """Whether a request can be made to it at all; urllib finds out later, in many ways."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        return False
    return bool(host) and url.isascii() and url.isprintable() and " " not in url


class Judge(GoesAhead):
    """Scores by asking; every call asks anew."""

    def __init__(self, settings: Remote) -> None:
        self.settings = settings
        self._shown = masked_url(settings.url)

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Score images in [0, 1], one prompt each; without a gradient.

        Raises:
            UserError: the judge is down, slow, or answers something other than a number an image.
        """
        return self._score(_levels(images), prompts, images.device)

    def is_apart(self, device: torch.device) -> bool:
        return True

    def begin(self, images: Images, prompts: list[str], queue: Queue) -> Begun:
        levels, device = _levels(images), images.device  # a quarter of the memory, and no GPU's
        return queue.begin(lambda: self._score(levels, prompts, device))

    def _score(self, levels: Tensor, prompts: list[str], device: torch.device) -> Batch:
        pictures = [_png(image) for image in levels]
        scores: list[float] = []
        size = self.settings.batch
        for start in range(0, len(pictures), size):
            part = slice(start, start + size)
            scores += self._ask(pictures[part], prompts[part])
        return torch.tensor(scores, dtype=torch.float32, device=device)

    def _ask(self, pictures: list[str], prompts: list[str]) -> list[float]:
        body = json.dumps({"images": pictures, "prompts": prompts}).encode()
        return self._scores(self._post(body), len(prompts))

    def _post(self, body: bytes) -> bytes:
        """The answer's body, after as many attempts as it takes or as there are."""
        token, retries, problem = self.settings.token(), self.settings.retries, ""
        for attempt in range(retries + 1):
            asked = 0.0
            try:
                reply = post(self.settings.url, body, token=token, timeout=self.settings.timeout)
            except NoReplyError as error:
                problem = str(error)
            else:
                if 200 <= reply.status < 300:
                    return reply.body
                problem, asked = self._problem(reply), reply.retry_after
            if attempt < retries:
                self._wait(min(max(FIRST_PAUSE * 2**attempt, asked), LONGEST_PAUSE), problem)
        raise self._refusal(
            f"cannot be used ({problem}; attempts: {retries + 1}); start it, check reward.url, or "
            "raise reward.timeout"
        )

    def _wait(self, pause: float, problem: str) -> None:
        """Pause, and say so on standard error: it may be a minute in all."""
        text = f"the judge at {self._shown}: {problem}; asked again in {pause:g} s"
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
        time.sleep(pause)

    def _problem(self, reply: Reply) -> str:
        """What is wrong with a status that may pass; the others are raised."""
        if 300 <= reply.status < 400:
            place = _short(masked_url(reply.location))
            raise self._refusal(
                f"redirects (status {reply.status}) to {place or 'nowhere'}; no redirect is "
                "followed: give the judge's own address as reward.url"
            )
        problem = f"status {reply.status}, {_first_line(reply.body)}"
        if reply.status != 429 and reply.status < 500:
            raise self._refusal(f"refuses ({problem}); mend the judge")
        return problem

    def _scores(self, answer: bytes, number: int) -> list[float]:
        try:
            found: Any = json.loads(answer)
        except (ValueError, RecursionError):
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
            if not _is_finite(score):
                raise self._refusal(
                    f"answers the score {_short(str(score))}; it must be a finite float32 number"
                )
        return [float(score) for score in scores]

    def _refusal(self, what: str) -> UserError:
        return UserError(f"reward: the judge at {self._shown} {what}")


def _levels(images: Images) -> Tensor:
    """Images in [0, 1], rounded to 8 bits, on the processor."""
    return (images.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)


def _png(levels: Tensor) -> str:
    """One image (3, h, w) of 8 bits as a PNG in base64."""
    buffer = BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _is_finite(score: float) -> bool:
    """In float32, as a reward is."""
    try:
        return abs(score) <= torch.finfo(torch.float32).max
    except OverflowError:  # an integer beyond the largest float
        return False


def _first_line(body: bytes) -> str:
    lines = body.decode(errors="replace").strip().splitlines()
    return _short(lines[0]) if lines else "an empty body"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 80 else text[:77] + "..."
