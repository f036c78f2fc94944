"use strict";
// Fresh images are sampled here; a new folder or run shows up when its command ends.

const fresh = byId("fresh");
if (fresh) {
  fresh.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = (name) => byId(name).value;
    start("/sample", { source: value("source"), prompts: value("prompts"), n: value("n"), seed: value("seed") });
  });
}
document.addEventListener("jobended", () => location.reload());
