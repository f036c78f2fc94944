"use strict";
// One question after the other; the next comes when the last answer is on the disk.

const rating = document.getElementById("rating");
if (rating) {
  const rater = document.getElementById("rater");
  let question = null;
  let busy = false;

  const show = (next) => {
    question = next;
    for (const side of ["left", "right"]) {
      document.getElementById(`${side}-image`).src = rating.dataset.images + next[side];
    }
    document.getElementById("prompt").textContent = next.prompt;
    const said = next.agreement ? `, ${next.agreement} judged alike by two people` : "";
    document.getElementById("progress").textContent =
      `${next.done} judged by ${rater.value}, ${next.total} in all${said}`;
  };

  const send = async (address, content) => {
    if (busy) return;
    busy = true;
    try {
      show(await post(`${rating.dataset.rate}/${address}`, { rater: rater.value, ...content }));
      say("");
    } catch (error) {
      say(error.message);
    } finally {
      busy = false;
    }
  };
  const answer = (which) => question && send("answer", { number: question.number, answer: which });

  for (const which of ["left", "right", "skip"]) {
    document.getElementById(which).addEventListener("click", () => answer(which));
  }
  document.getElementById("undo").addEventListener("click", () => send("undo", {}));
  rater.addEventListener("change", () => send("ask", {}));
  document.addEventListener("keydown", (event) => {
    if (event.target === rater || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const keys = { ArrowLeft: "left", ArrowRight: "right", " ": "skip", s: "skip" };
    if (event.key in keys && event.target.tagName !== "BUTTON" || event.key.startsWith("Arrow")) {
      event.preventDefault();
      answer(keys[event.key]);
    } else if (event.key === "u") {
      send("undo", {});
    }
  });
  send("ask", {});
}
