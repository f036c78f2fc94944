"use strict";
// The picture of the runs that are chosen, and the tilt's curve measured for them.

for (const group of document.querySelectorAll(".group")) {
  const boxes = [...group.querySelectorAll("input[type=checkbox]")];
  const runs = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const draw = () => {
    for (const theme of ["light", "dark"]) {
      group.querySelector(`img.${theme}`).src =
        `/compare/${group.dataset.group}/picture/${theme}?runs=${runs().join(",")}`;
    }
  };
  for (const box of boxes) box.addEventListener("change", draw);
  const measure = group.querySelector(".measure");
  if (measure) {
    measure.addEventListener("click", () =>
      start("/compare/start", { group: Number(group.dataset.group), runs: runs() }));
  }
  draw();
}
document.addEventListener("jobended", () => location.reload());
