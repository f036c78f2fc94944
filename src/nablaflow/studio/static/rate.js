"use strict";
// One question after the other; the next comes when the last answer is on the disk.

const rating = byId("rating");
if (rating) {
  const rater = byId("rater");
  const picks = { unsure: "the reward is unsure of this one", again: "another person was asked this", random: "" };
  let question = null;
  let busy = false;
  let name = rater.value;

  const tell = (next, who) => {
    const enough = Number(rating.dataset.enough), good = Number(rating.dataset.good);
    const goal = next.total < enough ? enough : good;
    byId("bar").max = goal;
    byId("bar").value = Math.min(next.total, goal);
    const agreed = next.agreement ? ` · ${next.agreement}` : "";
    const what = next.total < enough ? `a fit takes ${enough}` : next.total < good ? `${good} make a good fit` : "enough for a good fit";
    byId("progress").textContent = `${next.done} by ${who}, ${next.total} in all; ${what}${agreed}`;
  };

  // An answer is to what is seen, so none is taken before the images are there.
  const show = async (next, who) => {
    question = next.number === null ? null : next;
    tell(next, who);
    byId("prompt").textContent = question ? next.prompt : "You have rated all images.";
    byId("pick").textContent = question ? picks[next.pick] : "";
    const images = next.images.map((address, at) => {
      const image = byId(`image-${at}`);
      image.src = rating.dataset.images + address;
      return image.decode().then(() => image.classList.toggle("tiny", image.naturalWidth <= 128));
    });
    const shown = await Promise.allSettled(images);
    if (shown.some((one) => one.status === "rejected")) say("An image cannot be shown; skip this one.");
  };

  const send = async (address, content) => {
    if (busy) return;
    busy = true;
    const who = name;
    rating.setAttribute("aria-busy", "true");
    try {
      const next = await post(`${rating.dataset.rate}/${address}`, { rater: who, ...content });
      say("");
      await show(next, who);
    } catch (error) {
      say(error.message);
    } finally {
      busy = false;
      rating.removeAttribute("aria-busy");
    }
    if (name !== who) rename();
  };
  // A question is to one person: another name has one of its own, also where it came while
  // the first was being asked.
  const rename = () => {
    name = rater.value;
    question = null;
    send("ask", {});
  };
  const answer = (which) => question && send("answer", { number: question.number, answer: which });

  for (const button of rating.querySelectorAll("button[data-answer]")) {
    button.addEventListener("click", () => answer(button.dataset.answer));
  }
  byId("undo").addEventListener("click", () => send("undo", {}));
  rater.addEventListener("change", rename);

  const keys = rating.dataset.kind === "stars"
    ? { 1: "1", 2: "2", 3: "3", 4: "4", 5: "5" }
    : { ArrowLeft: "left", ArrowRight: "right" };
  document.addEventListener("keydown", (event) => {
    if (event.target === rater || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    // Space on a button or a link is that button's or link's own.
    const free = !["BUTTON", "A", "SUMMARY"].includes(event.target.tagName);
    if (event.key in keys || event.key === "s" || (event.key === " " && free)) {
      event.preventDefault();
      answer(keys[event.key] || "skip");
    } else if (event.key === "u") {
      send("undo", {});
    }
  });
  send("ask", {});
}
