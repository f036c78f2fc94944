"use strict";
// What every page has: requests that change something, and a run that is seen while it trains.

const token = document.querySelector('meta[name="token"]').content;

function say(text) {
  document.getElementById("said").textContent = text;
}

async function post(address, content) {
  let answer;
  try {
    answer = await fetch(address, {
      method: "POST",
      headers: { "content-type": "application/json", "x-nablaflow-token": token },
      body: JSON.stringify(content),
    });
  } catch {
    throw new Error("the studio does not answer; is it still running?");
  }
  const text = await answer.text();
  let found = {};
  try { found = JSON.parse(text); } catch { found = { error: text }; }
  if (!answer.ok) throw new Error(found.error || `status ${answer.status}`);
  return found;
}

const live = document.getElementById("live");
if (live) {
  setInterval(async () => {
    const answer = await fetch(live.dataset.live).catch(() => null);
    if (answer && answer.ok && (await answer.json()).stamp !== live.dataset.stamp) location.reload();
  }, 2000);
}

const when = document.getElementById("when");
if (when) {
  const names = [...document.querySelectorAll("#names li")].map((item) => item.textContent);
  when.addEventListener("input", () => {
    const sheet = document.getElementById("sheet");
    sheet.src = when.dataset.sheets + when.value;
    sheet.alt = `Samples of the policy at ${names[when.value]}`;
    document.getElementById("which").textContent = names[when.value];
  });
}
