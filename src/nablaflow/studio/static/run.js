"use strict";
// A run that is seen while it trains, and its images at each checkpoint and strength.

const live = byId("live");

async function renew() {
  const found = await get(live.dataset.live);
  if (found && found.stamp !== live.dataset.stamp) await renewParts("live", "live-curves");
}
setInterval(renew, 2000);

async function renewParts(...names) {
  const answer = await fetch(location.href).catch(() => null);
  if (!answer || !answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const name of names) byId(name).innerHTML = page.getElementById(name).innerHTML;
  if (names.includes("live")) live.dataset.stamp = page.getElementById("live").dataset.stamp;
}

const when = byId("when");
if (when) {
  const names = [...document.querySelectorAll("#names li")].map((item) => item.textContent);
  when.addEventListener("input", () => {
    byId("sheet").src = when.dataset.sheets + when.value;
    byId("sheet").alt = `Samples of the policy at ${names[when.value]}`;
    byId("which").textContent = names[when.value];
  });
}

const place = byId("positions");
let drawn = null;   // the gallery
let chosen = null;  // the position that is shown

async function readGallery() {
  const found = await get(place.dataset.gallery);
  if (!found || !found.positions) return;
  drawn = found;
  drawn.reference = drawn.positions[0];
  // Without any strength is the reference, with all of it the last checkpoint.
  drawn.checkpoints = drawn.positions.filter((at) => !at.name.startsWith("strength-"));
  const last = drawn.checkpoints[drawn.checkpoints.length - 1];
  drawn.strengths = [...drawn.positions.filter((at) => at.name.startsWith("strength-")), last, drawn.reference]
    .sort((a, b) => a.strength - b.strength);
  place.hidden = false;
  byId("no-gallery").hidden = true;
  setRange("checkpoint", drawn.checkpoints, last);
  setRange("strength", drawn.strengths, last);
  show(last);
}

function setRange(name, positions, at) {
  byId(name).max = positions.length - 1;
  byId(name).value = positions.indexOf(at);
}

function show(position) {
  chosen = position;
  const { checkpoints, strengths, reference } = drawn;
  const last = checkpoints[checkpoints.length - 1];
  const words = position === reference ? "the reference" : position.checkpoint;
  byId("checkpoint-name").textContent = words;
  byId("checkpoint").setAttribute("aria-valuetext", words);
  const strength = position === reference ? 0 : position.strength;
  byId("strength-name").textContent = `${strength}`;
  byId("strength").setAttribute("aria-valuetext", `${strength}`);
  if (checkpoints.includes(position)) setRange("checkpoint", checkpoints, position);
  if (strengths.includes(position)) setRange("strength", strengths, position);
  if (!checkpoints.includes(position)) setRange("checkpoint", checkpoints, last);
  byId("rate-these").href = `/rate/${position.address}/pairs`;
  const mean = (values) => {
    const known = values.filter((value) => value !== null);
    if (known.length < 2) return "unknown";
    const middle = known.reduce((a, b) => a + b, 0) / known.length;
    const spread = Math.sqrt(known.reduce((a, b) => a + (b - middle) ** 2, 0) / (known.length - 1));
    return `${middle.toPrecision(3)} ± ${(spread / Math.sqrt(known.length)).toPrecision(2)}`;
  };
  byId("position-said").textContent =
    `Mean reward of these images ${mean(position.rewards)}, of the reference's ${mean(reference.rewards)}.`;
  renderCards();
}

function order() {
  const places = chosen.images.map((_, at) => at);
  const by = (values, sign) => places.sort((a, b) => sign * ((values[a] ?? -Infinity) - (values[b] ?? -Infinity)));
  switch (byId("order").value) {
    case "best": return by(chosen.rewards, -1);
    case "worst": return by(chosen.rewards, 1);
    case "nearest": return by(chosen.distances, 1);
    case "farthest": return by(chosen.distances, -1);
    default: return places;
  }
}

function picture(position, at, words) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  image.src = `/images/${position.address}/${position.images[at]}`;
  image.alt = `${words}: ${drawn.prompts[at]}`;
  const reward = position.rewards[at];
  caption.textContent = reward === null ? words : `${words} ${reward.toFixed(2)}`;
  figure.append(image, caption);
  return figure;
}

function renderCards() {
  byId("cards").replaceChildren(...order().map((at) => {
    const card = document.createElement("div");
    card.className = "card";
    const prompt = document.createElement("p");
    prompt.className = "facts";
    prompt.textContent = `${drawn.prompts[at]} · moved ${(chosen.distances[at] ?? 0).toFixed(2)}`;
    card.append(picture(drawn.reference, at, "before"), picture(chosen, at, "after"), prompt);
    return card;
  }));
}

byId("checkpoint").addEventListener("input", (event) => show(drawn.checkpoints[event.target.value]));
byId("strength").addEventListener("input", (event) => show(drawn.strengths[event.target.value]));
byId("order").addEventListener("change", renderCards);
document.addEventListener("jobended", () => { readGallery(); renew(); renewParts("exports"); });
readGallery();
