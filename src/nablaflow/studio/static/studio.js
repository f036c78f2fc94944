"use strict";
// What every page has: requests that change something, and the command that runs.

const token = document.querySelector('meta[name="token"]').content;
const byId = (name) => document.getElementById(name);

function say(text) {
  byId("said").textContent = text;
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
    throw new Error("The studio does not answer; is it still running?");
  }
  const text = await answer.text();
  let found = {};
  try { found = JSON.parse(text); } catch { found = { error: text }; }
  if (!answer.ok) throw new Error(found.error || `status ${answer.status}`);
  return found;
}

async function get(address) {
  const answer = await fetch(address).catch(() => null);
  return answer && answer.ok ? answer.json() : null;
}

// Starts a command; what is wrong is said.
async function start(address, content) {
  say("");
  try {
    await post(address, content);
  } catch (error) {
    say(error.message);
  }
  await watch();
}

let wasRunning = false;

async function watch() {
  const job = await get("/job");
  if (!job || !job.command) return;
  byId("job").hidden = false;
  byId("job").className = job.running ? "running" : job.ended.split(" ")[0].replace(":", "");
  byId("job-command").textContent = job.command;
  byId("job-log").textContent = job.log;
  byId("job-commands").textContent = job.commands.join("\n");
  const state = job.running ? lastLine(job.log) || "running" : job.ended;
  if (byId("job-state").textContent !== state) byId("job-state").textContent = state;
  byId("job-leads").hidden = !job.leads;
  byId("job-leads").href = job.leads || "";
  if (byId("job-stop")) byId("job-stop").hidden = !job.running;
  if (wasRunning && !job.running) document.dispatchEvent(new CustomEvent("jobended", { detail: job }));
  wasRunning = job.running;
}

function lastLine(log) {
  return log.trim().split("\n").pop().replace(/^\d+:\d\d:\d\d /, "").slice(0, 60);
}

// On the document, so that a button which comes later is heard too.
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button && !["fit", "align"].includes(button.id)) start(button.dataset.post, {});
});
if (byId("job-stop")) byId("job-stop").addEventListener("click", () => start("/job/stop", {}));
watch();
setInterval(watch, 1000);
