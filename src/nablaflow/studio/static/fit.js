"use strict";
// The fit, what a tilt of the folder's images would look like, and the alignment.

const kind = byId("kind");
if (byId("fit")) {
  byId("fit").addEventListener("click", () => start(byId("fit").dataset.post, kind ? { kind: kind.value } : {}));
}
if (byId("align")) {
  byId("align").addEventListener("click", () =>
    start(byId("align").dataset.post, { beta: Number(value()), updates: byId("updates").value }));
}
document.addEventListener("jobended", (event) => {
  if (event.detail.command.includes(" reward fit ")) location.reload();
});
if (byId("scoring")) setTimeout(() => location.reload(), 3000);

const beta = byId("beta");
const value = () => (Number(beta.dataset.start) * 10 ** Number(beta.value)).toPrecision(2);
let asked = 0;

function figure([image, weight]) {
  const place = document.createElement("figure");
  const picture = document.createElement("img");
  const caption = document.createElement("figcaption");
  picture.src = beta.dataset.images + image;
  picture.alt = `an image that is ${weight.toFixed(1)} times as frequent`;
  caption.textContent = `× ${weight.toFixed(1)}`;
  place.append(picture, caption);
  return place;
}

function item(strong, text, word) {
  const place = document.createElement("li");
  const number = document.createElement("strong");
  const link = document.createElement("a");
  number.textContent = strong;
  link.textContent = text;
  link.href = `/words#${word}`;
  place.append(number, " ", link);
  return place;
}

async function preview() {
  const mine = ++asked;
  byId("beta-value").textContent = value();
  beta.setAttribute("aria-valuetext", value());
  const found = await get(`${beta.dataset.preview}?beta=${value()}`);
  if (!found || mine !== asked) return;  // the slider has moved on
  const percent = (share) => `${Math.round(100 * share)} %`;
  const with_error = ({ value: middle, se }, digits = 2) => `${middle.toFixed(digits)} ± ${se.toFixed(digits)}`;
  byId("strength").replaceChildren(
    item(`${with_error(found.reward)} → ${with_error(found.tilted)}`, "mean reward", "reward_mean"),
    item(`${percent(found.diversity.value)} ± ${percent(found.diversity.se)}`, "of the diversity stays", "diversity"),
    item(percent(found.share), found.trusted ? "of the images count" : "of the images count: too few to tell much", "share"),
    item(`${found.nats.toFixed(2)}`, "nats", "nats"),
  );
  byId("align-command").textContent = found.command.replace("UPDATES", byId("updates") ? byId("updates").value : "60");
  byId("plain").replaceChildren(...found.plain.map(figure));
  byId("tilted").replaceChildren(...found.images.map(figure));
}

if (beta) {
  beta.addEventListener("input", preview);
  if (byId("updates")) byId("updates").addEventListener("input", preview);
  preview();
}
