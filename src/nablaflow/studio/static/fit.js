"use strict";
// The command that runs, and what a tilt of the folder's images would look like.

const log = document.getElementById("job-log");
let last = null;

async function watch() {
  const answer = await fetch("/job").catch(() => null);
  const job = answer && answer.ok ? await answer.json() : {};
  const running = job.command !== undefined && job.status === null;
  if (job.command) {
    document.getElementById("job-command").textContent =
      running ? job.command : `${job.command} (ended with status ${job.status})`;
    log.textContent = job.log;
    log.hidden = false;
  }
  const stop = document.getElementById("stop");
  if (stop) stop.hidden = !running;
  if (last === true && !running && job.command.includes("reward fit")) location.reload();
  last = running;
}

for (const button of document.querySelectorAll("button[data-post]")) {
  button.addEventListener("click", async () => {
    const content = button.id === "align"
      ? { beta: Number(value()), updates: document.getElementById("updates").value }
      : {};
    try {
      const found = await post(button.dataset.post, content);
      if (found.command) say(found.command);
    } catch (error) {
      say(error.message);
    }
    watch();
  });
}

const beta = document.getElementById("beta");
const value = () => (10 ** Number(beta.value)).toPrecision(2);

async function preview() {
  document.getElementById("beta-value").textContent = value();
  const answer = await fetch(`${beta.dataset.preview}?beta=${value()}`).catch(() => null);
  if (!answer || !answer.ok) return;
  const found = await answer.json();
  const percent = (share) => `${Math.round(100 * share)} %`;
  document.getElementById("strength").textContent =
    `Mean reward from ${found.reward.toFixed(2)} to ${found.tilted.toFixed(2)}; ` +
    `${percent(found.share)} of the images still count (${found.nats.toFixed(2)} nats); ` +
    `diversity ${percent(found.diversity)} of what it is.`;
  document.getElementById("align-command").textContent = found.command;
  const frequent = document.getElementById("frequent");
  frequent.replaceChildren(...found.images.map(([number, weight]) => {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    const caption = document.createElement("figcaption");
    image.src = `${beta.dataset.images}${number}?small`;
    image.alt = `image ${number}, ${weight.toFixed(1)} times as frequent`;
    caption.textContent = `× ${weight.toFixed(1)}`;
    figure.append(image, caption);
    return figure;
  }));
}

if (beta) {
  beta.addEventListener("input", preview);
  preview();
}
watch();
setInterval(watch, 1000);
